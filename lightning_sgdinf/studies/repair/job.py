"""The study: causes of failures and treatments on one recorded run per seed, merged into two tables and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report import log_merged, write_merged
from lightning_sgdinf.report.repair import RepairPage
from lightning_sgdinf.studies.cache import pin_settings, read_json, results_of
from lightning_sgdinf.studies.console import print_tables
from lightning_sgdinf.studies.definitions import pin_definitions
from lightning_sgdinf.studies.job import PIPELINE_GROUPS, Parts, cell_of
from lightning_sgdinf.studies.job_logger import begin_run
from lightning_sgdinf.studies.repair.causes import Cause, with_components
from lightning_sgdinf.studies.repair.cell import RepairCell
from lightning_sgdinf.studies.repair.corruptions import Corruption
from lightning_sgdinf.studies.repair.page import repair_page
from lightning_sgdinf.studies.repair.tables import Seed
from lightning_sgdinf.studies.suggestion import suggestion
from lightning_sgdinf.studies.unlearning.tables import markdown
from lightning_sgdinf.zoo import ImageData

FRESH, RANDOM = "fresh", "random"


@dataclass(frozen=True, kw_only=True)
class RepairJob:
    """Causes of failures, and treatments of the model for what they find; one seed.

    Every result is one file in ``output_dir``; an existing one is not computed again. Tables and page are written anew
    from all seeds in the folder. A random set of equal size is always treated beside.

    In a configuration::

        job:
          _target_: lightning_sgdinf.studies.RepairJob
          corruption: {_target_: lightning_sgdinf.studies.CorruptedLabels}
          causes:
            aum:
              _target_: lightning_sgdinf.studies.RankedBy
              baseline: {_target_: lightning_sgdinf.baselines.AreaUnderMargin}
          treatments: {replay: {_target_: lightning_sgdinf.updates.CounterfactualReplay}}

    Args:
        corruption: What is wrong.
        causes: By name.
        treatments: Updates by name; a partial one is given ``failures=``. ``fresh``, a training with another seed, is
            there besides.
        identify: Names of the causes whose selections are treated; all if ``None``.
        also_rank: Names of causes that are judged as rankings alone.
        treat: Names of the treatments; all if ``None``.
        part: Of the training set, how many examples a ranking selects, in ``(0, 1)``.
        fresh_runs: How many fresh trainings ``fresh`` is the mean of: single ones differ more by their seeds than
            by what most sets change.
        keep: The states that the record keeps.
        keep_record: Leave the record in the folder; it is made again where it is missing.

    Raises:
        ConfigurationError: A name that there is not, or that the study needs itself; a part out of range.
    """

    ignored_groups: ClassVar[Mapping[str, str]] = {
        **{part: why for part, why in PIPELINE_GROUPS.items() if part != "logger"},
        "estimator": "it compares job.causes",
        "compare": "it compares job.causes",
        "query": "it asks about failures",
        "report": "it writes a page of its own",
        "recorder": "job.keep says which states are kept",
    }

    corruption: Corruption
    causes: Mapping[str, Cause]
    treatments: Mapping[str, Any]
    identify: Sequence[str] | None = None
    also_rank: Sequence[str] = ()
    treat: Sequence[str] | None = None
    part: float = 0.1
    fresh_runs: int = 1
    keep: str = "every_step"
    keep_record: bool = False

    def __post_init__(self) -> None:
        if RANDOM not in self.causes or FRESH in self.treatments:
            raise ConfigurationError(
                f"expected a cause {RANDOM!r}, which every other is read beside, and no treatment {FRESH!r}, which the "
                f"study has itself; got causes {list(self.causes)} and treatments {list(self.treatments)}"
            )
        for what, given, known in (
            ("identify", self.identify, self.causes),
            ("also_rank", self.also_rank, self.causes),
            ("treat", self.treat, {**self.treatments, FRESH: None}),
        ):
            if unknown := [name for name in given or () if name not in known]:
                raise ConfigurationError(
                    f"{what}: {unknown[0]!r} is none of them{suggestion(unknown[0], known)} Known: {', '.join(known)}"
                )
        if self.fresh_runs < 1:
            raise ConfigurationError(f"fresh_runs: expected at least 1, got {self.fresh_runs}")
        if not 0 < self.part < 1:
            raise ConfigurationError(f"part: expected a part of the training set in (0, 1), got {self.part}")

    def run(self, parts: Parts) -> float:
        """Compute what is missing of a seed, and write tables and page.

        Returns:
            Test loss of the first cause's first treatment; NaN if it refused.

        Raises:
            ConfigurationError: A data set without images, or results on disk with other settings.
        """
        if not isinstance(parts.dataset, ImageData):
            raise ConfigurationError(f"dataset: expected images, got {type(parts.dataset).__name__}")
        corrupted = self.corruption.prepare(parts.dataset, parts.seed)
        folder = parts.folder / self._cell(parts)
        pin_settings(folder / "settings.json", self._settings(parts, parts.dataset))
        treated = list(dict.fromkeys([*(self.causes if self.identify is None else self.identify), RANDOM]))
        treatments = [*self.treatments, FRESH] if self.treat is None else list(self.treat)
        causes = with_components(self.causes, [*treated, *self.also_rank])
        named = {
            "causes": {name: self.causes[name] for name in causes},
            "treatments": {name: self.treatments.get(name) for name in treatments},
        }
        pin_definitions(folder / "definitions.json", parts, named)
        cell = RepairCell(
            parts=parts,
            corrupted=corrupted,
            causes=self.causes,
            treatments={**self.treatments, FRESH: None},
            count=max(1, round(self.part * len(corrupted.data.train_set))),
            seed=parts.seed,
            fresh_runs=self.fresh_runs,
            keep=self.keep,
            keep_record=self.keep_record,
            folder=folder / f"seed_{parts.seed}",
        )
        suspects, outcomes = cell.measure([n for n in self.also_rank if n not in treated], treated, treatments)
        seeds = read_seeds(folder, list(self.causes), [*self.treatments, FRESH])
        with results_of(folder):
            page = repair_page(corrupted, {"causes": suspects, "treated": outcomes}, seeds, folder.name)
            write_merged(page, folder)
            text = "\n".join(markdown(table) for table in page.tables)
            first = outcomes[treated[0]].get(treatments[0], {}) if treatments else {}
            loss = float(first.get("measures", {}).get("test_loss", float("nan")))
        replace_bytes(folder / "table.md", text.encode("utf-8", "replace"))
        _log(parts, page, outcomes, cell.folder, folder.name, self.ignored_groups)
        print_tables(page.tables, folder / "page.html")
        return loss

    def _cell(self, parts: Parts) -> str:
        corruption = parts.choices.get("corruption", type(self.corruption).__name__)
        label_noise = parts.config.get("dataset", {}).get("label_noise") or {}
        own = label_noise if isinstance(label_noise, Mapping) else {"fraction": label_noise}
        details = [str(own[key]) for key in ("fraction", "which") if own.get(key) is not None]
        return "_".join((cell_of(parts.choices), corruption, parts.choices.get("noise") or "noise", *details))

    def _settings(self, parts: Parts, data: ImageData) -> dict[str, Any]:
        return {
            "examples": len(data.train_set),
            "validation": len(data.val_set),
            "test": len(data.test_set),
            **{key: parts.config.get("dataset", {}).get(key) for key in ("crop_padding", "flip", "mean", "std")},
            "batch_size": data.batch_size,
            "epochs": parts.trainer().max_epochs,
            "optimizer": repr(getattr(parts.optimizer, "keywords", {})),
            "network": repr(getattr(parts.network, "keywords", {})),
            "corruption": repr(self.corruption),
            "label_noise": repr(parts.config.get("dataset", {}).get("label_noise")),
            "part": self.part,
            "fresh_runs": self.fresh_runs,
        }


def read_seeds(folder: Path, causes: Sequence[str], treatments: Sequence[str]) -> list[Seed]:
    """Return the results of all seeds in a folder, in the given order of causes and treatments."""
    seeds = []
    for own in sorted(folder.glob("seed_*")):
        if not (own / "before" / "run.json").is_file():
            continue
        files = {name: own / "causes" / f"{name}.json" for name in causes}
        suspects = {name: read_json(file) for name, file in files.items() if file.is_file()}
        treated: dict[str, Any] = {"none": {"before": read_json(own / "before" / "run.json")}}
        for cause in suspects:
            files = {name: own / "treated" / f"{cause}__{name}.json" for name in treatments}
            rows = {name: read_json(file) for name, file in files.items() if file.is_file()}
            if rows:
                treated[cause] = rows
        seeds.append({"causes": suspects, "treated": treated})
    return seeds


def _log(
    parts: Parts, page: RepairPage, outcomes: Mapping[str, Any], folder: Path, cell: str, ignored: Mapping[str, str]
) -> None:
    logger = begin_run(parts, folder, kind="repair", cell=cell, ignored=ignored)
    if logger is None:
        return
    numbers = {
        f"{cause}/{treatment}/{name}": float(value)
        for cause, own in outcomes.items()
        for treatment, row in own.items()
        for name, value in row.get("measures", {}).items()
    }
    log_merged(page, logger, numbers=numbers, curves={})
