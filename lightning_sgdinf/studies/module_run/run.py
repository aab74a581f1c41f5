"""The job for a module of the caller's from end to end: train and record, rank, cleanse, measure, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from lightning_sgdinf.cleansing import CleansingContext, ModelPredictions, RetrainingCache
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.evaluation import CleansingCurve, Comparison, paired_t_test
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.query import ExampleLoss, MeanLoss
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.report import BeforeAfter, Cost, Rendered, ReportData, publish_report
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.studies import summary
from lightning_sgdinf.studies.job import main_groups
from lightning_sgdinf.studies.module_run.held_out import HeldOut, Measure, classes_of
from lightning_sgdinf.studies.module_run.parts import ModuleParts
from lightning_sgdinf.studies.pipeline.parts import CLEANSING, REPORT, TRAINING
from lightning_sgdinf.studies.recorded_run import TrainedRun
from lightning_sgdinf.studies.removal_curves import removal_curves
from lightning_sgdinf.studies.retraining import model_update, shown, trainings_at_most

logger = printable_logger(__name__)

CHOOSING, EACH, MEASURED, TESTED = "choosing", "each", "measured", "tested"
"""What is known of a retrained model: the query on the choosing half, the loss of each example there, and the query on
the data that the effect is measured on, and the loss of each example there, as far as it is needed for a test."""
_MOST_TESTED = 1000
"""Test examples up to which the loss of each is computed of every model: each takes a pass of its own."""


@dataclass(frozen=True, kw_only=True)
class ModuleResult:
    """The results of the job.

    Attributes:
        scores: By name of the method, the job's own first.
        selection: The examples left out or relabelled.
        metric: What ``before`` and ``after`` are, in few words.
        measured: The same, with the part of the data.
        measured_on: The number of these data.
        noun: What they are, in the plural.
        before: The query's value of the trained model.
        after: And after training again.
        better: The good direction of both.
        test: Of the difference, over test examples; ``None`` if there was none.
        curves: The same against the number of examples left out, one per method; of test data only.
        seconds: Wall time of the parts, by name.
        warnings: What could not be done.
    """

    scores: Mapping[str, Scores]
    selection: Selection
    metric: str
    measured: str
    measured_on: int
    noun: str
    before: float
    after: float
    better: str
    test: Comparison | None
    curves: tuple[CleansingCurve, ...]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    @property
    def main(self) -> Scores:
        """Return the scores of the job's own method."""
        return next(iter(self.scores.values()))


def run_module(parts: ModuleParts, command: str = "") -> tuple[ModuleResult, Path]:
    """Run the job and write scores, report and results.

    Args:
        parts: Of the job.
        command: The command line, for the report.

    Returns:
        The result, and the path of the report.

    Raises:
        ConfigurationError: Data or module do not offer what the job needs; says what.
    """
    parts.announce(TRAINING)
    train_logger = parts.new_logger()
    trained = parts.training.fit(recorder=parts.recorder, data={"datamodule": parts.data}, logger=train_logger or False)
    with _opened(parts, trained) as run:
        held_out = HeldOut.of(parts.data, run.validation_loader, parts.seed)
        dataset = run.dataset
    scores, seconds, warnings = _rank(parts, trained, held_out)
    (parts.folder / "scores").mkdir(parents=True, exist_ok=True)
    for name, ranking in scores.items():  # before anything else can go wrong: a walk may have taken hours
        ranking.save(parts.folder / "scores" / f"{name}.h5", overwrite=True)
    parts.announce(CLEANSING)
    began = perf_counter()
    outcome = _cleanse(parts, trained, held_out, scores)
    seconds["choosing, retraining and curves"] = perf_counter() - began
    result = ModuleResult(
        scores=scores,
        seconds={"training, recorded": trained.seconds, **seconds},
        warnings=(*warnings, *_reservations(held_out)),
        **outcome,
    )
    parts.announce(REPORT)
    page = publish_report(
        _contents(parts, result, dataset, command), parts.folder / "report", train_logger, log=parts.recorder.path
    )
    return result, page


def row_of(parts: ModuleParts, result: ModuleResult) -> dict[str, summary.Cell]:
    """Return the row in the table of a sweep."""
    return {
        "seed": parts.seed,
        **main_groups(parts.groups_read),
        "measured": result.measured,
        "before": result.before,
        "after": result.after,
        "changed": len(result.selection),
        "seconds_training": result.seconds["training, recorded"],
    }


@contextmanager
def _opened(parts: ModuleParts, trained: TrainedRun, loader: DataLoader[Any] | None = None) -> Iterator[OpenedRun]:
    with parts.runner.open(trained.model, None, loader, parts.data, log=parts.recorder.path) as run:
        yield run


def _rank(
    parts: ModuleParts, trained: TrainedRun, held_out: HeldOut
) -> tuple[dict[str, Scores], dict[str, float], list[str]]:
    """Score every training example by every method; a method for comparison that cannot is left out."""
    scores: dict[str, Scores] = {}
    seconds: dict[str, float] = {}
    warnings: list[str] = []
    for name, method in parts.methods.items():
        parts.announce(f"ranking by {name}")
        began = perf_counter()
        run = partial(parts.runner.run, trained.model, None, held_out.scoring, parts.data, log=parts.recorder.path)
        try:
            scores[name] = run(query=parts.query, estimator=method)
        except SgdInfluenceError as error:
            if not scores:
                raise
            warnings.append(f"no comparison with {name}: {error}")
            logger.warning("%s", warnings[-1])
            continue
        seconds[f"ranking by {name}"] = perf_counter() - began
    return scores, seconds, warnings


def _cleanse(
    parts: ModuleParts, trained: TrainedRun, held_out: HeldOut, scores: Mapping[str, Scores]
) -> dict[str, Any]:
    """Choose what to leave out, train again, and measure."""
    ranking = next(iter(scores.values()))
    update = model_update(parts.retraining, lambda data: _fit(parts, data))
    counts = parts.report.counts_below(len(ranking)) if held_out.test is not None else ()
    most = trainings_at_most(parts.cleansing, len(counts), len(scores), len(ranking))
    with (
        _opened(parts, trained, held_out.choosing) as run,
        shown(partial(update.update, run), most=most, progress=parts.runner.settings.progress) as retraining,
    ):
        choosing = Measure(parts.runner.bind(run, parts.query))
        judged = ExampleLoss(range(len(held_out.choosing.dataset)))  # type: ignore[arg-type]
        measure = choosing if held_out.test is None else choosing.on(held_out.test)
        measures: dict[str, Any] = {CHOOSING: choosing, EACH: parts.runner.bind(run, judged).value, MEASURED: measure}
        if held_out.test is not None and (each := _each_tested(parts, measure)) is not None:
            measures[TESTED] = each
        outcomes = RetrainingCache(retraining, measures)
        context = CleansingContext(
            labels=classes_of(run.dataset),
            predictions=_predictions(trained, run),
            evaluate=lambda selection: outcomes(selection)[CHOOSING],
            evaluate_each=lambda selection: outcomes(selection)[EACH],
            on_excess=parts.on_excess,
            seed=parts.seed,
        )
        selection = parts.cleansing.select(ranking, context)
        measured = lambda chosen: measure.sign * outcomes(chosen)[MEASURED]  # noqa: E731
        before, after = measured(Selection()), measured(selection)
        metric = f"{'validation' if held_out.test is None else 'test'} {measure.name}"
        tested: list[Any] = [outcomes(chosen).get(TESTED) for chosen in (Selection(), selection)]
        curves = removal_curves(scores, measured, counts, chosen=selection, metric=metric, percent=False)
    return {
        "selection": selection,
        "metric": metric,
        "measured": f"{measure.name}, {'choosing half of the validation' if held_out.test is None else 'test'} data",
        "measured_on": len(measure.bound.data.loader.dataset),  # type: ignore[arg-type]
        "noun": f"{'validation' if held_out.test is None else 'test'} examples",
        "before": before,
        "after": after,
        "better": measure.bound.query.better,
        "test": None if tested[0] is None else replace(paired_t_test(*tested), of="test examples"),
        "curves": curves,
    }


def _each_tested(parts: ModuleParts, measure: Measure) -> Callable[[ModelState], Tensor] | None:
    """Return what gives the loss of each test example; ``None`` where the measure is no mean of these, or they are
    too many."""
    count = len(measure.bound.data.loader.dataset)  # type: ignore[arg-type]
    if not isinstance(parts.query, MeanLoss) or not 1 < count <= _MOST_TESTED:
        return None
    return replace(measure.bound, query=ExampleLoss(range(count), parts.query.step)).value


def _fit(parts: ModuleParts, dataset: Any) -> Any:
    """Train a new model on a data set, in batches as the recorded run's.

    Raises:
        ConfigurationError: Its batches are made in a way that another data set cannot be cut by.
    """
    loader = parts.data.train_dataloader()
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
        raise ConfigurationError(
            "retrain=scratch: expected one training DataLoader with shuffle=True or False, got "
            f"{type(loader).__name__}; use retrain=all, which takes the recorded batches"
        )
    shuffle = isinstance(loader.sampler, RandomSampler)
    again = DataLoader(
        dataset,
        batch_size=loader.batch_size,
        shuffle=shuffle,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        generator=torch.Generator().manual_seed(parts.seed),
    )
    data = copy(parts.data)  # with its hooks, by which batches are moved and changed
    data.train_dataloader = lambda: again
    return parts.training.fit(data={"datamodule": data}, limit_val_batches=0).model


def _predictions(trained: TrainedRun, run: OpenedRun) -> Callable[[Any], Tensor] | None:
    return None if run.dataset is None else ModelPredictions(trained.model, run.dataset)


def _reservations(held_out: HeldOut) -> tuple[str, ...]:
    if held_out.test is not None:
        return ()
    return (
        "the data module has no test_dataloader: the effect of leaving examples out is measured on the validation "
        "examples that the choice was made by, and looks better than it is",
    )


def _contents(parts: ModuleParts, result: ModuleResult, dataset: Any, command: str) -> ReportData:
    subject = " and ".join(parts.choices[group] for group in ("dataset", "model") if group in parts.choices)
    costs = [Cost(part=part, seconds=seconds) for part, seconds in result.seconds.items()]
    changed = BeforeAfter(
        metric=result.metric,
        before=(result.before,),
        after=(result.after,),
        removed=len(result.selection),
        better="lower" if result.better == "lower" else "higher",
        percent=False,
        measured_on=result.measured_on,
        noun=result.noun,
        test=result.test,
        reason=result.selection.reason,
    )
    return ReportData(
        title=f"Training examples that helped and harmed: {subject or type(parts.data).__name__}",
        scores=result.main,
        asked={name: choice for name, choice in sorted(parts.groups_read.items()) if not name.startswith("hydra")},
        command=command,
        config=parts.config_text,
        examples=_examples(dataset),
        shown=parts.report.shown,
        before_after=(changed,),
        curves=result.curves,
        costs=tuple(costs),
        warnings=result.warnings,
        compared={name: scores for name, scores in result.scores.items() if scores is not result.main},
    )


def _examples(dataset: Any) -> Mapping[int, Any]:
    """Return the training examples to look at; none where their form is known to their owner alone."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return {}
    rendered = Rendered(dataset)
    try:
        rendered[0]
    except ConfigurationError:
        return {}
    return rendered
