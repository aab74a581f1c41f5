"""The linear datamodelling score of every estimator, one cell (model, optimizer, seed) at a time.

Trains and records a classifier, measures the effect of training without random sets of examples on the losses of single
validation examples, and correlates it with the sums of the examples' scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.evaluation import datamodelling_score, random_subsets
from lightning_sgdinf.plain_text import markdown_table, printable_logger
from lightning_sgdinf.query import ExampleLoss
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.cache import check_settings, load_or_compute, read_json, results_of
from lightning_sgdinf.studies.console import Console, Table, plain
from lightning_sgdinf.studies.definitions import pin_definitions
from lightning_sgdinf.studies.job import PIPELINE_GROUPS, Parts
from lightning_sgdinf.truth import Truth
from lightning_sgdinf.zoo import ImageData

PAGE = "table.md"
logger = printable_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class LdsJob:
    """Linear datamodelling scores of several methods in one cell.

    A cell's results are one file in ``output_dir``; an existing one is not computed again. ``table.md`` is written anew
    from all cells in the folder: means over seeds, with 95 % intervals.

    In a configuration::

        job:
          _target_: lightning_sgdinf.studies.LdsJob
          removals: {half: {part: 0.5, divisor: reduced}}
          methods: {sgd_influence: {_target_: lightning_sgdinf.estimators.SgdInfluence}}

    Args:
        methods: Estimators and baselines by name.
        removals: By name, the part of the examples that is left out and the divisor of the losses of a batch then.
        subsets: Random sets of examples per removal, at least 10.
        queries: Validation examples whose losses are asked, at least 1.
        resamples: Of the bootstrap.

    Raises:
        ConfigurationError: A number out of range, or nothing to do.
    """

    ignored_groups: ClassVar[Mapping[str, str]] = {
        **PIPELINE_GROUPS,
        "estimator": "it compares job.methods",
        "compare": "it compares job.methods",
        "query": "it asks validation losses one by one",
    }

    methods: Mapping[str, Any]
    removals: Mapping[str, Mapping[str, Any]]
    subsets: int = 100
    queries: int = 30
    resamples: int = 1000

    def __post_init__(self) -> None:
        if self.subsets < 10 or self.queries < 1 or self.resamples < 1 or not self.methods or not self.removals:
            raise ConfigurationError(
                "expected subsets >= 10, queries >= 1, resamples >= 1, a method and a removal, got "
                f"{self.subsets}, {self.queries}, {self.resamples}, {list(self.methods)} and {list(self.removals)}"
            )

    def run(self, parts: Parts) -> float:
        """Compute the cell unless it is there, and write the table.

        Returns:
            The score of the first method for the first removal.

        Raises:
            ConfigurationError: A data set without images, or a cell on disk with other settings.
        """
        if not isinstance(parts.dataset, ImageData):
            raise ConfigurationError(f"dataset: expected images, got {type(parts.dataset).__name__}")
        model, optimizer = (parts.choices.get(group, group) for group in ("model", "optimizer"))
        data, file = parts.dataset, parts.folder / f"{model}_{optimizer}_{parts.seed}.json"
        settings = self._settings(parts, data)
        about = {"model": model, "optimizer": optimizer, "seed": parts.seed, "settings": settings}
        # Beside the cells, which are all files that end in .json; seeds share it.
        definitions = parts.folder / f"{model}_{optimizer}.definitions"
        pin_definitions(definitions, parts, {"methods": self.methods})
        cell = load_or_compute(file, lambda: about | self._cell(parts, data))
        page = parts.folder / PAGE
        with results_of(parts.folder):
            check_settings(file, cell["settings"], settings)
            cells = [read_json(file) for file in sorted(parts.folder.glob("*.json"))]
            replace_bytes(page, markdown(cells).encode("utf-8", "replace"))
            _print(cell, page)
            first = next(iter(cell["scores"].values()))
            return next(iter(first.values()))["mean"]

    def _settings(self, parts: Parts, data: ImageData) -> dict[str, Any]:
        """Return the settings that results of one file share."""
        return {
            "examples": len(data.train_set),
            "batch_size": data.batch_size,
            "epochs": getattr(parts.trainer, "keywords", {}).get("max_epochs"),
            "optimizer": repr(getattr(parts.optimizer, "keywords", {})),
            "subsets": self.subsets,
            "queries": self.queries,
            "removals": {name: dict(removal) for name, removal in self.removals.items()},
        }

    def _cell(self, parts: Parts, data: ImageData) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "run.tlog"
            run = parts.training(data, parts.seed).fit(
                recorder=TrajectoryRecorder(log), data={"datamodule": data}, enable_progress_bar=False
            )
            runner = parts.runner(certificate="off", progress=False)
            arguments = {"datamodule": data, "log": log, "query": ExampleLoss(range(self.queries))}
            truths: dict[str, Truth] = {}
            for name, removal in self.removals.items():
                sets = random_subsets(len(data.train_set), self.subsets, part=float(removal["part"]), seed=parts.seed)
                truths[name] = runner.counterfactuals(
                    run.model, leave_out=sets, divisor=removal.get("divisor", "kept"), **arguments
                )
            seconds = {"training": run.seconds, **{f"truth, {name}": of.seconds for name, of in truths.items()}}
            compared = self._compare(lambda method: runner.run(run.model, estimator=method, **arguments), truths)
        return {
            **compared,
            "seconds": seconds | compared["seconds"],
            "validation_error": 1 - run.metrics["val_accuracy"],
        }

    def _compare(self, score: Callable[[Any], Scores], truths: Mapping[str, Truth]) -> dict[str, Any]:
        """Return the scores, failures, seconds of all methods, and the amplification of the whole run if one saw it."""
        scores: dict[str, dict[str, Any]] = {name: {} for name in truths}
        failed: dict[str, str] = {}
        seconds: dict[str, float] = {}
        amplification: float | None = None
        for method, estimator in self.methods.items():
            began = perf_counter()
            try:
                estimated = score(estimator)
            except SgdInfluenceError as error:
                failed[method] = f"{type(error).__name__}: {error}"
                logger.warning("%s gave nothing: %s", method, failed[method])
                continue
            finally:
                seconds[method] = perf_counter() - began
            measured = None if estimated.certificate is None else estimated.certificate.amplification
            if measured is not None and measured.first_step == 0:  # of the whole run
                amplification = measured.factor
            for name, truth in truths.items():
                agreement = datamodelling_score(estimated, truth, resamples=self.resamples)
                scores[name][method] = {"mean": agreement.mean, "low": agreement.low, "high": agreement.high}
        return {"scores": scores, "failed": failed, "seconds": seconds, "amplification": amplification}


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return a table per removal: a row per method, a column per model and optimizer; means over seeds.

    The interval of a mean of seeds takes each seed's for that of an independent normal deviate.
    """
    columns = list(dict.fromkeys((cell["model"], cell["optimizer"]) for cell in cells))
    parts = []
    for removal in dict.fromkeys(name for cell in cells for name in cell["scores"]):
        methods = list(dict.fromkeys(m for cell in cells for m in cell["scores"].get(removal, {})))
        about = next(c["settings"]["removals"][removal] for c in cells if removal in c["settings"]["removals"])
        title = f"{removal}: {100 * float(about['part']):.0f} % left out, divisor {about.get('divisor', 'kept')}"
        rows = [[title, *(f"{m}, {o}" for m, o in columns)]]
        for method in methods:
            row = [method]
            for column in columns:
                own = [c["scores"].get(removal, {}).get(method) for c in cells if _column(c) == column]
                row.append(_mean([score for score in own if score is not None]))
            rows.append(row)
        rows.append(["seeds", *(str(sum(_column(c) == column for c in cells)) for column in columns)])
        errors = [np.mean([c["validation_error"] for c in cells if _column(c) == column]) for column in columns]
        rows.append(["validation error", *(f"{100 * error:.1f} %" for error in errors)])
        factors = [[f for c in cells if _column(c) == column and (f := c.get("amplification"))] for column in columns]
        rows.append(["amplification", *(f"{np.mean(own):.1f}" if own else "" for own in factors)])
        parts.append(markdown_table(rows))
    return "\n\n".join(parts) + "\n"


def _column(cell: Mapping[str, Any]) -> tuple[str, str]:
    return cell["model"], cell["optimizer"]


def _mean(scores: Sequence[Mapping[str, float]]) -> str:
    if not scores:
        return ""
    mean = float(np.mean([score["mean"] for score in scores]))
    half = float(np.sqrt(sum(((score["high"] - score["low"]) / 2) ** 2 for score in scores))) / len(scores)
    return f"{mean:.2f} ± {half:.2f}"


def _print(cell: Mapping[str, Any], page: Path) -> None:
    console = Console(highlight=False)
    table = Table(title=plain(f"{cell['model']}, {cell['optimizer']}, seed {cell['seed']}"), title_justify="left")
    for name in ("method", *cell["scores"], "seconds"):
        table.add_column(plain(name), justify="left" if name == "method" else "right")
    for method in next(iter(cell["scores"].values())):
        scores = [by_method[method] for by_method in cell["scores"].values()]
        values = [f"{s['mean']:.3f} [{s['low']:.2f}, {s['high']:.2f}]" for s in scores]
        table.add_row(plain(method), *values, f"{cell['seconds'][method]:.1f}")
    console.print(table)
    for method, why in cell["failed"].items():
        console.print(f"[dim]{plain(method)} gave nothing: {plain(why)}[/]")
    console.print(f"[bold]{plain(page)}[/]", soft_wrap=True)
