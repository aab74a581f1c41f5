"""The job: one repeat (one seed) of one cell; results on disk are not computed again."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from lightning_sgdinf.atomic_write import locked, replace_bytes
from lightning_sgdinf.cleansing import CleansingContext, CleansingStrategy, InfeasibleWarning, Selection
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.cache import Json, digest, pin_settings
from lightning_sgdinf.studies.cleansing import dashboard
from lightning_sgdinf.studies.cleansing.ranking import Method, rank
from lightning_sgdinf.studies.cleansing.removals import Mode, Removals
from lightning_sgdinf.studies.cleansing.repeat import Repeat
from lightning_sgdinf.studies.console import Console, Table, plain
from lightning_sgdinf.studies.definitions import OF_A_RUN, settings_of
from lightning_sgdinf.studies.identity import identity_of
from lightning_sgdinf.studies.job import PIPELINE_GROUPS, Parts, cell_of
from lightning_sgdinf.studies.job_logger import begin_run
from lightning_sgdinf.studies.recorded_run import StoredRun
from lightning_sgdinf.studies.results import FILE, Choice, MethodCost, Point, RunResults
from lightning_sgdinf.studies.retraining import Retrain
from lightning_sgdinf.studies.suggestion import suggestion
from lightning_sgdinf.zoo import ImageData

logger = printable_logger(__name__)
OF_A_CELL = (*OF_A_RUN, "query")
"""Groups of the configuration that repeats of one cell have in common."""


@dataclass(frozen=True, kw_only=True)
class CleansingJob:
    """Does removing what a method finds most harmful make the model better? One repeat of section 7.2 of the paper.

    Trains with the recorder on, scores by every method, trains again without the first ``m`` examples of every ranking
    for every ``m`` of a grid, and measures on the test set. Each result is a file under
    ``output_dir/<cell>/seed_<seed>``; an existing one is not computed again, so a job that was stopped goes on.

    In a configuration::

        job:
          _target_: lightning_sgdinf.studies.CleansingJob
          estimators: {random: {_target_: lightning_sgdinf.baselines.RandomBaseline}}
          retrainings: {last: {_target_: lightning_sgdinf.updates.CounterfactualReplay, epochs: 1}}

    Args:
        estimators: Ways to rank, by name.
        retrainings: Ways to train again, by name.
        methods: Names of the estimators to use, in this order; ``null`` for all. Averages are used in any case.
        modes: Names of the ways to train again to use; ``null`` for all.
        averages: Further methods by name: ``{of: <name of an estimator>, runs: 3}`` are its scores averaged over so
            many recorded runs on the same data, which differ in initial model and order; ``null`` for none.
        strategies: Ways to choose the number of examples on held-out data, by name.
        grid: Numbers of examples to leave out, increasing, at least 1 and below the number of training examples.
        choose_by: The held-out value that the strategies use.
        scored_on: Scores are about ``"half"`` of the validation set and the other half is for choosing, or about
            ``"all"`` of it, as published, and nothing is chosen.
        cell: Folder of the cell; ``null`` for the names of data set and model.
        keep: The states that the recorder stores.
        keep_record: Keep the records on disk in the end.
        shown: Number of the most harmful examples of each method to keep pictures of.

    Raises:
        ConfigurationError: An unknown name, a number out of range, or nothing to do.
    """

    ignored_groups: ClassVar[Mapping[str, str]] = {
        **{part: why for part, why in PIPELINE_GROUPS.items() if part != "logger"},
        "estimator": "job.methods says which of job.estimators rank",
        "compare": "job.methods says which of job.estimators rank",
        "recorder": "job.keep says which states are recorded",
        "cleansing": "job.strategies choose the number",
        "retrain": "job.modes says which of job.retrainings are done",
        "choose_by": "it has job.choose_by",
        "on_excess": "it warns where a class is gone, and refuses a job.grid beyond the training set",
    }

    estimators: Mapping[str, Any]
    retrainings: Mapping[str, Retrain]
    methods: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    averages: Mapping[str, Mapping[str, Any]] | None = None
    strategies: Mapping[str, CleansingStrategy] = field(default_factory=dict)
    grid: Sequence[int] = (10, 30, 100, 300, 1000)
    choose_by: Literal["loss", "error"] = "error"
    scored_on: Literal["half", "all"] = "half"
    cell: str | None = None
    keep: str = "every_step"
    keep_record: bool = True
    shown: int = 10

    def __post_init__(self) -> None:
        grid = tuple(self.grid)
        if not grid or grid[0] < 1 or any(a >= b for a, b in pairwise(grid)):
            raise ConfigurationError(f"grid: expected counts that increase from 1 or more, got {list(grid)}")
        if self.scored_on not in ("half", "all") or self.choose_by not in ("loss", "error"):
            raise ConfigurationError(
                f"expected scored_on half or all and choose_by loss or error, got {self.scored_on} and {self.choose_by}"
            )
        averages = dict(self.averages or {})
        for name, average in averages.items():
            if name in self.estimators:
                raise ConfigurationError(f"averages.{name}: there is an estimator of this name; give another one")
            if set(average) != {"of", "runs"} or average["of"] not in self.estimators or int(average["runs"]) < 1:
                raise ConfigurationError(
                    f"averages.{name}: expected {{of: <one of {', '.join(self.estimators)}>, runs: 1 or more}}, got "
                    f"{dict(average)}"
                )
        methods = _picked("methods", self.methods, [*self.estimators, *averages])
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "averages", averages)
        object.__setattr__(self, "methods", tuple(dict.fromkeys([*methods, *averages])))
        object.__setattr__(self, "modes", _picked("modes", self.modes, list(self.retrainings)))

    def run(self, parts: Parts) -> float:
        """Compute the results that are not on disk yet.

        Returns:
            Test error of the point that is best on held-out examples, over all methods, modes and numbers of this job,
            nothing left out among them; of equals the one with the fewest left out.

        Raises:
            ConfigurationError: A data set without images, a grid beyond its size, or results of other settings.
        """
        data = parts.dataset
        if not isinstance(data, ImageData):
            raise ConfigurationError(f"dataset: expected images, got {type(data).__name__}")
        total = len(data.train_set)
        if self.grid[-1] >= total:
            raise ConfigurationError(
                f"job.grid: expected counts below the {total} training examples, got {self.grid[-1]}; shorten it"
            )
        cell = self.cell or cell_of(parts.choices)
        settings = {"scored_on": self.scored_on, **settings_of(parts.config, OF_A_CELL)}
        pin_settings(parts.folder / cell / "settings.json", settings, instead="another job.cell or output_dir")
        folder = parts.folder / cell / f"seed_{parts.seed:03d}"
        repeat = Repeat(parts=parts, data=data, folder=folder, keep=self.keep, scored_on=self.scored_on)
        dashboard_logger = begin_run(parts, folder, kind="cleansing", cell=cell, ignored=self.ignored_groups)
        results = self._results(repeat, cell, settings)
        _print(results, folder)
        if dashboard_logger is not None:
            dashboard.log(replace(results, place=folder), dashboard_logger)
        return min(results.points, key=_held_out).measured.test_error

    def _results(self, repeat: Repeat, cell: str, settings: Mapping[str, Json]) -> RunResults:
        run = repeat.run()
        definitions = self._definitions(repeat, run)
        costs: dict[str, MethodCost] = {}
        points: list[Point] = []
        choices: list[Choice] = []
        harmful: dict[str, tuple[int, ...]] = {}

        def so_far() -> RunResults:
            result = RunResults(
                cell=cell,
                seed=repeat.seed,
                settings=settings,
                training={key: run.about[key] for key in ("seconds", "steps", "record_bytes", "state_bytes")},
                methods=costs,
                points=tuple(points),
                choices=tuple(choices),
                harmful=harmful,
                definitions=definitions,
            )
            _add(result, repeat)
            return result

        modes = list(self._modes(repeat))
        with Removals(repeat, run, self.choose_by) as removals:
            points += [Point(method="", mode=m.name, count=0, measured=removals.outcome(m, Selection())) for m in modes]
            for method in self._methods(repeat):
                scores, costs[method.name] = rank(repeat, method)
                if scores is not None:
                    harmful[method.name] = scores.most_harmful(self.shown).example_ids
                    for mode in modes:
                        points += self._points(removals, method.name, mode, scores)
                        choices += self._choices(repeat, removals, method.name, mode, scores)
                result = so_far()  # in each round: a table of what there is, should the rest never come
            logger.info(
                "%s: %d models measured anew; %d results were there", repeat.folder, removals.trained, removals.cached
            )
        if not self.keep_record:
            for number in range(max((m.runs for m in self._methods(repeat)), default=1)):
                repeat.run(number).remove_record()
        return result

    def _points(self, removals: Removals, method: str, mode: Mode, scores: Scores) -> Iterator[Point]:
        order = scores.order().tolist()
        for count in self.grid:
            try:
                measured = removals.outcome(mode, Selection(drop=tuple(order[:count])))
            except NonFiniteError as error:
                logger.warning("%s, %s without %d examples: %s", method, mode.name, count, error)
                continue
            yield Point(method=method, mode=mode.name, count=count, measured=measured)

    def _choices(self, repeat: Repeat, removals: Removals, method: str, mode: Mode, scores: Scores) -> Iterator[Choice]:
        if self.scored_on == "all":
            return  # there is nothing held out to choose on
        context = CleansingContext(
            labels=repeat.data.train_set.labels,
            predictions=lambda ids: removals.predictions()(ids),
            evaluate=removals.held_out_value(mode),
            evaluate_each=removals.held_out_values(mode),
            on_excess="warn",
            seed=repeat.seed,
        )
        before = removals.outcome(mode, Selection())
        for name, strategy in self.strategies.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", InfeasibleWarning)  # training says which classes are gone
                    selection = strategy.select(scores, context)
                after = removals.outcome(mode, selection)
            except NonFiniteError as error:
                logger.warning("%s, %s: %s chose nothing: %s", method, mode.name, name, error)
                continue
            yield Choice(
                method=method,
                mode=mode.name,
                strategy=name,
                count=len(selection),
                before=before.test_error,
                after=after.test_error,
            )

    def _definitions(self, repeat: Repeat, run: StoredRun) -> dict[str, str]:
        """Return digests by which a later job of this repeat sees which of these results its own names stand for."""
        nodes = repeat.parts.config.get("job", {}).get("strategies", {})
        return {
            "run": digest(run.about["final_state"], self.choose_by),
            **{f"method {m.name}": digest(m.identity, m.runs) for m in self._methods(repeat)},
            **{f"mode {mode.name}": digest(mode.identity) for mode in self._modes(repeat)},
            **{f"strategy {name}": digest(nodes.get(name, repr(of))) for name, of in self.strategies.items()},
        }

    def _methods(self, repeat: Repeat) -> Iterator[Method]:
        nodes = repeat.parts.config.get("job", {}).get("estimators", {})
        for name in self.methods or ():
            average = (self.averages or {}).get(name, {"of": name, "runs": 1})
            of, runs = average["of"], average["runs"]
            identity = identity_of(nodes.get(of, repr(self.estimators[of])))
            yield Method(name=name, of=of, estimator=self.estimators[of], identity=identity, runs=int(runs))

    def _modes(self, repeat: Repeat) -> Iterator[Mode]:
        nodes = repeat.parts.config.get("job", {}).get("retrainings", {})
        for name in self.modes or ():
            retrain = self.retrainings[name]
            yield Mode(name=name, retrain=retrain, identity=identity_of(nodes.get(name, repr(retrain))))


def _picked(what: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(known if names is None else names)
    for name in chosen:
        if name not in known:
            raise ConfigurationError(f"{what}: there is no {name!r}{suggestion(name, known)} Known: {', '.join(known)}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigurationError(f"{what}: expected one name or more, each once, got {list(chosen)}")
    return chosen


def _add(result: RunResults, repeat: Repeat) -> None:
    """Write results together with those that earlier jobs, or others at the same time, left in the folder."""
    file = repeat.folder / FILE
    with locked(file):
        if file.is_file() and (before := RunResults.load(file)).definitions:
            result = result.joined(before)
        result.save(repeat.folder)
        _keep_pictures(repeat.data, result.harmful, repeat.folder / "found.npz")


def _keep_pictures(data: ImageData, harmful: Mapping[str, Sequence[int]], file: Path) -> None:
    """Write pictures and labels of the examples that any method shows, once each."""
    ids = sorted({int(i) for chosen in harmful.values() for i in chosen})
    images = torch.stack([data.image(i) for i in ids]) if ids else torch.zeros(0, *data.image_shape)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        ids=np.array(ids, np.int64),
        images=images.permute(0, 2, 3, 1).clamp(0, 1).mul(255).round().byte().numpy(),
        labels=np.array([data.class_names[int(data.train_set.labels[i])] for i in ids], np.str_),
        true_labels=np.array([data.class_names[int(data.true_labels[i])] for i in ids], np.str_),
    )
    replace_bytes(file, buffer.getvalue())


def _held_out(point: Point) -> tuple[float, int]:
    value = point.measured.chosen_by
    return (math.inf if value is None else value), point.count


def _print(results: RunResults, folder: Path, console: Callable[..., None] | None = None) -> None:
    """Print a table per mode: a column per number, then one per strategy with its choice."""
    show = console or Console(highlight=False).print
    base = {point.mode: point.measured.test_error for point in results.points if not point.method}
    for mode, none in base.items():
        counts = sorted({point.count for point in results.points if point.mode == mode and point.count})
        strategies = list(dict.fromkeys(choice.strategy for choice in results.choices if choice.mode == mode))
        show(f"Test error in %, trained again ({plain(mode)}) without so many; {100 * none:.2f} with none left out")
        table = Table("method")
        for name in (*map(str, counts), *(f"{strategy} (number)" for strategy in strategies)):
            table.add_column(plain(name), justify="right")
        for method, cost in results.methods.items():
            at = {p.count: p.measured.test_error for p in results.points if (p.mode, p.method) == (mode, method)}
            chose = {c.strategy: c for c in results.choices if (c.mode, c.method) == (mode, method)}
            cells = [f"{100 * at[c]:.2f}" if c in at else "" for c in counts]
            cells += [f"{100 * chose[s].after:.2f} ({chose[s].count})" if s in chose else "" for s in strategies]
            table.add_row(plain(method), *([plain(cost.failed)] if cost.failed else cells))
        show(table)
    show(f"Results: {plain(folder)}")
