"""The study: methods of unlearning on one recorded run per seed, merged over seeds into one table and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report import write_merged
from lightning_sgdinf.studies.cache import pin_settings, read_json, results_of
from lightning_sgdinf.studies.console import print_tables
from lightning_sgdinf.studies.definitions import pin_definitions
from lightning_sgdinf.studies.job import PIPELINE_GROUPS, Parts, cell_of
from lightning_sgdinf.studies.unlearning.cell import UnlearningCell
from lightning_sgdinf.studies.unlearning.dashboard import log_seed
from lightning_sgdinf.studies.unlearning.page import forgetting_page
from lightning_sgdinf.studies.unlearning.requests import ForgetRequest
from lightning_sgdinf.studies.unlearning.tables import Rows, markdown
from lightning_sgdinf.updates import ModelUpdate
from lightning_sgdinf.zoo import ImageData

OTHERS = ("before", "exact", "fresh")


@dataclass(frozen=True, kw_only=True)
class UnlearningJob:
    """Methods of unlearning, each judged by the exact run without the set; one seed.

    Every result is one file in ``output_dir``; an existing one is not computed again. Table and page are written anew
    from all seeds in the folder.

    In a configuration::

        job:
          _target_: lightning_sgdinf.studies.UnlearningJob
          forget: {_target_: lightning_sgdinf.studies.ForgetClass, label: 8}
          methods: {replay_1: {_target_: lightning_sgdinf.updates.CounterfactualReplay, epochs: 1}}

    Args:
        forget: The request.
        methods: Updates by name.
        only: Names of those to carry out; all if ``None``.
        cosine: The learning rate falls to 0 by a cosine, epoch by epoch.
        keep: The states that the record keeps.
        keep_record: Leave the record in the folder; it is made again where it is missing.

    Raises:
        ConfigurationError: No method, a name that the study needs itself, or one in ``only`` that there is not.
    """

    ignored_groups: ClassVar[Mapping[str, str]] = {
        **{part: why for part, why in PIPELINE_GROUPS.items() if part != "logger"},
        "estimator": "it compares job.methods",
        "compare": "it compares job.methods",
        "query": "it compares predictions on test data",
        "report": "it writes a page of its own",
        "recorder": "job.keep says which states are kept",
    }

    forget: ForgetRequest
    methods: Mapping[str, ModelUpdate]
    only: Sequence[str] | None = None
    cosine: bool = False
    keep: str = "every_step"
    keep_record: bool = False

    def __post_init__(self) -> None:
        if not self.methods or (taken := [name for name in self.methods if name in OTHERS]):
            raise ConfigurationError(
                f"methods: expected at least one, none of them named {', '.join(OTHERS)}, got {list(self.methods)}"
                + (f" (taken: {taken})" if self.methods else "")
            )
        if unknown := [name for name in self.only or () if name not in self.methods]:
            raise ConfigurationError(f"only: {unknown} are none of the methods {list(self.methods)}")

    @property
    def chosen(self) -> dict[str, ModelUpdate]:
        """Return the methods to carry out."""
        return {name: self.methods[name] for name in (self.methods if self.only is None else self.only)}

    def run(self, parts: Parts) -> float:
        """Compute what is missing of a seed, and write table and page.

        Returns:
            The first method's divergence from the exact run, on the rest or on what was changed; NaN if it refused.

        Raises:
            ConfigurationError: A data set without images, or results on disk with other settings.
        """
        if not isinstance(parts.dataset, ImageData):
            raise ConfigurationError(f"dataset: expected images, got {type(parts.dataset).__name__}")
        folder = parts.folder / self._cell(parts)
        pin_settings(folder / "settings.json", self._settings(parts, parts.dataset))
        pin_definitions(folder / "definitions.json", parts, {"methods": self.chosen})
        cell = UnlearningCell(
            parts=parts,
            request=self.forget,
            data=parts.dataset,
            seed=parts.seed,
            cosine=self.cosine,
            keep=self.keep,
            keep_record=self.keep_record,
            folder=folder / f"seed_{parts.seed}",
        )
        rows = cell.measure(self.chosen)
        seeds = read_seeds(folder, (*OTHERS, *self.methods))
        with results_of(folder):
            page = forgetting_page(self.forget.prepare(parts.dataset, parts.seed), rows, seeds, folder.name)
            write_merged(page, folder)
            text = "\n".join(markdown(table) for table in page.tables)
            first = rows[next(iter(self.chosen))].get("measures", {})
            divergence = float(first.get("rest_divergence", first.get("divergence", float("nan"))))
        replace_bytes(folder / "table.md", text.encode("utf-8", "replace"))
        log_seed(parts, page, rows, folder=cell.folder, cell=folder.name, ignored=self.ignored_groups)
        print_tables(page.tables, folder / "page.html")
        return divergence

    def _cell(self, parts: Parts) -> str:
        schedule = "cosine" if self.cosine else "constant"
        return "_".join((cell_of(parts.choices), parts.choices.get("forget", type(self.forget).__name__), schedule))

    def _settings(self, parts: Parts, data: ImageData) -> dict[str, Any]:
        return {
            "examples": len(data.train_set),
            "batch_size": data.batch_size,
            "epochs": parts.trainer().max_epochs,
            "optimizer": repr(getattr(parts.optimizer, "keywords", {})),
            "network": repr(getattr(parts.network, "keywords", {})),
            "forget": repr(self.forget),
            "cosine": self.cosine,
        }


def read_seeds(folder: Path, methods: Sequence[str]) -> list[Rows]:
    """Return the results of all seeds in a folder, methods in the given order, others after them."""
    seeds = []
    for own in sorted(folder.glob("seed_*")):
        files = {file.stem: file for file in own.glob("*.json") if file.name != "run.json"}
        ordered = [*(n for n in methods if n in files), *(n for n in sorted(files) if n not in methods)]
        seeds.append({name: read_json(files[name]) for name in ordered})
    return seeds
