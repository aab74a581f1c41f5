"""Names of earlier releases, each with the one that it has now."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_sgdinf
from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.cleansing import CounterfactualRetraining, ScratchRetraining
from lightning_sgdinf.estimators import Estimate, SgdInfluence
from lightning_sgdinf.evaluation import detect
from lightning_sgdinf.log import Header, LogWriter
from lightning_sgdinf.record.writer import take_buffers_of
from lightning_sgdinf.replay import relabelled
from lightning_sgdinf.replay.retracer import Retracer
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import Layout, ModelState
from lightning_sgdinf.tasks.retraining import Counterfactual
from lightning_sgdinf.testing import small_run
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining

OLD = {
    "lightning_sgdinf.baselines.ConjugateGradient": "lightning_sgdinf.curvature.ConjugateGradient",
    "lightning_sgdinf.baselines.Dense": "lightning_sgdinf.curvature.Dense",
    "lightning_sgdinf.baselines.Evidence": "lightning_sgdinf.replay.OpenedRun",
    "lightning_sgdinf.baselines.Examples": "lightning_sgdinf.replay.Examples",
    "lightning_sgdinf.baselines.KohLiang": "lightning_sgdinf.estimators.KohLiang",
    "lightning_sgdinf.baselines.Lissa": "lightning_sgdinf.curvature.Lissa",
    "lightning_sgdinf.baselines.MomentumDescent": "lightning_sgdinf.curvature.MomentumDescent",
    "lightning_sgdinf.cleansing.Chosen": "lightning_sgdinf.cleansing.StrategyOutcome",
    "lightning_sgdinf.cleansing.ExcessWarning": "lightning_sgdinf.cleansing.InfeasibleWarning",
    "lightning_sgdinf.cleansing.how_reliable": "lightning_sgdinf.cleansing.measure_reliability",
    "lightning_sgdinf.cleansing.Outcomes": "lightning_sgdinf.cleansing.RetrainingCache",
    "lightning_sgdinf.cleansing.Retrained": "lightning_sgdinf.updates.Updated",
    **{
        f"lightning_sgdinf.cleansing.{name}": f"lightning_sgdinf.updates.{name}"
        for name in (
            *("ReducedDataset", "RelabelledDataset", "Retraining", "cleansed_dataset", "replace_label"),
            *("load_state", "state_of", "with_state"),
        )
    },
    "lightning_sgdinf.estimators.Answer": "lightning_sgdinf.estimators.Estimate",
    "lightning_sgdinf.estimators.Question": "lightning_sgdinf.estimators.question.Question",
    "lightning_sgdinf.tasks.cleansing.CleansingJob": "lightning_sgdinf.studies.CleansingJob",
    "lightning_sgdinf.tasks.job.Job": "lightning_sgdinf.studies.Job",
    "lightning_sgdinf.tasks.job.OF_THE_MAIN_JOB": "lightning_sgdinf.studies.PIPELINE_GROUPS",
    "lightning_sgdinf.tasks.job.Parts": "lightning_sgdinf.studies.Parts",
    "lightning_sgdinf.tasks.lds.LdsJob": "lightning_sgdinf.studies.LdsJob",
    "lightning_sgdinf.tasks.lie.LieJob": "lightning_sgdinf.studies.AgreementJob",
    "lightning_sgdinf.tasks.retraining.Scratch": "lightning_sgdinf.studies.Scratch",
    "lightning_sgdinf.tasks.study.ReportSettings": "lightning_sgdinf.studies.ReportSettings",
    "lightning_sgdinf.truth.Halving": "lightning_sgdinf.refinement.Halving",
    "lightning_sgdinf.truth.Screening": "lightning_sgdinf.refinement.Screening",
    "lightning_sgdinf.truth.Strategy": "lightning_sgdinf.refinement.Strategy",
    "lightning_sgdinf.truth.refine": "lightning_sgdinf.refinement.refine",
}
"""Dotted path of an earlier release to the present one."""


def typed(path: str) -> Any:
    home, _, name = path.rpartition(".")
    return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize(("old", "new"), OLD.items(), ids=OLD)
def test_an_old_name_gives_what_it_gave_and_says_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new};") as caught:
        thing = typed(old)
    assert thing is typed(new)
    assert [warning.filename for warning in caught] == [__file__], "the warning points at the line that is to change"


def test_every_old_name_is_in_the_table() -> None:
    package = Path(lightning_sgdinf.__file__).parent
    given: set[str] = set()
    for file in package.rglob("*.py"):
        if "__getattr__ = renamed(" in file.read_text(encoding="utf-8"):
            dotted = ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            look_up: Any = importlib.import_module(dotted).__getattr__
            homes = dict(zip(look_up.__code__.co_freevars, look_up.__closure__, strict=True))["homes"].cell_contents
            given |= {f"{dotted}.{name}" for name in homes}
    assert given == set(OLD)


def test_an_old_default_stays_with_its_name() -> None:
    with pytest.warns(DeprecationWarning, match="Counterfactual is now lightning_sgdinf.updates.CounterfactualReplay;"):
        assert Counterfactual() == CounterfactualReplay(1) != CounterfactualReplay()


def test_a_name_that_never_was_is_an_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'lightning_sgdinf.truth' has no attribute 'Quartering'"):
        typed("lightning_sgdinf.truth.Quartering")


RUNNER = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
LAYOUT = Layout.of(ModelState(params={"weight": torch.zeros(3)}))
DETECTION = detect(torch.arange(6), [0, 1, 4])
SELECTION = Selection(drop=(3,), relabel={5: 1, 0: 0})


def replace_last(batch: Any, positions: Any, labels: Any) -> Any:
    x, y = batch
    changed = y.clone()
    changed[list(positions)] = torch.tensor(list(labels))
    return x, changed


def scores(estimator: Any = None, **settings: Any) -> Tensor:
    run = small_run()
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, **settings)
    return runner.run(run.model, run.train, run.validation, log=run.log, estimator=estimator).values


def update(of: Any) -> ModelState:
    run = small_run()
    return RUNNER.update(run.model, run.train, log=run.log, update=of, selection=SELECTION).state


def fit(dataset: Any) -> nn.Module:
    torch.manual_seed(len(dataset))
    model = small_run().model
    x, y = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    model.training_step((torch.stack(x), torch.stack(y)), 0).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad + torch.rand(()))
    return model


def run_through_retracer(**labels: Any) -> ModelState:
    run = small_run()
    with RUNNER.retracer(run.model, run.train, log=run.log, **labels) as retracer:
        return retracer.run(run.log.state(0), 0, len(run.log), relabel=SELECTION.relabel)


def run_through_own_retracer() -> ModelState:
    run = small_run()
    with RUNNER.open(run.model, run.train, log=run.log) as opened:
        retracer = Retracer(run.log, opened.objective)
        return retracer.run(run.log.state(0), 0, len(run.log), relabel=SELECTION.relabel)


def run_through_replayer(replace_labels: Any) -> ModelState:
    run = small_run()
    with RUNNER.replayer(run.model, run.train, log=run.log) as replayer:
        edit = relabelled(SELECTION.relabel, replace_labels)
        return replayer.run(run.log.state(0), 0, len(run.log), edit=edit)


def retrain(*, epochs: Any) -> ModelState:
    run = small_run()
    with RUNNER.replayer(run.model, run.train, log=run.log) as replayer:
        return CounterfactualRetraining(replayer, run.log, epochs=epochs)(SELECTION).state


def retrain_with_retracer() -> ModelState:
    run = small_run()
    with RUNNER.retracer(run.model, run.train, log=run.log, replace_labels=replace_last) as retracer:
        return CounterfactualRetraining(retracer, run.log)(SELECTION).state


class Answering:
    """Minus the gradient's first entries, in the form of an earlier release."""

    def answer(self, question: Any) -> Any:
        rows = question.gradient[:, : question.examples] * question.value(question.model)[:, None]
        return Estimate(rows.T.double() * question.room_bytes * len(question.log))


class Estimating:
    """The same in the present form."""

    def estimate(self, run: Any, query: Any) -> Any:
        rows = query.at_model(run)[1].params[:, : run.examples] * query.value(run.model)[:, None]
        return Estimate(rows.T.double() * run.memory_bytes * len(run.log))


class VisitingInPairs(SgdInfluence):
    """The exact derivative, handed back as adjoint and slopes alone."""

    def visit(self, at: Any, adjoint: Any) -> Any:
        pulled = super().visit(at, adjoint)
        return pulled.adjoint, pulled.slopes


@dataclass(frozen=True)
class Ranking:
    """A ranking by id, whose number of examples is read by the name given."""

    count: str
    title = "id"

    def rank(self, evidence: Any) -> Tensor:
        return -torch.arange(getattr(evidence, self.count), dtype=torch.float64)


def buffers_of_a_writer(name: str) -> Tensor:
    header = Header(run_id="run", created="", model="", optimizer="", parameters=())
    with TemporaryDirectory() as folder:
        writer = LogWriter(Path(folder) / "run", header=header)
        try:
            return getattr(writer, name)(LAYOUT)["float32"].zero_()
        finally:
            writer.abandon("enough")


class LanesWriter:
    """A writer of one's own, by the protocol of an earlier release."""

    def lanes(self, layout: Layout) -> dict[str, Tensor]:
        return layout.empty()


@dataclass(frozen=True, kw_only=True)
class Call:
    """Something typed as before and as now.

    Attributes:
        old: Types it as before.
        new: Types it as now.
        warns: Old words and new ones, as the warning says them.
        here: The warning points at the line of the call; otherwise it is the package that meets what is old.
    """

    old: Callable[[], Any]
    new: Callable[[], Any]
    warns: str
    here: bool = True


CALLS = {
    "InfluenceRunner(room_bytes=)": Call(
        old=lambda: scores(room_bytes=1 << 16),
        new=lambda: scores(memory_bytes=1 << 16),
        warns="room_bytes= is now memory_bytes=",
    ),
    "InfluenceRunner.retracer": Call(
        old=run_through_retracer,
        new=lambda: run_through_replayer(replace_last),
        warns="InfluenceRunner.retracer is now InfluenceRunner.replayer",
    ),
    "InfluenceRunner.retracer(replace_labels=)": Call(
        old=lambda: run_through_retracer(replace_labels=lambda batch, positions, labels: (batch[0], 2 - batch[1])),
        new=lambda: run_through_replayer(lambda batch, positions, labels: (batch[0], 2 - batch[1])),
        warns="InfluenceRunner.retracer is now InfluenceRunner.replayer",
    ),
    "Retracer": Call(
        old=run_through_own_retracer,
        new=lambda: run_through_replayer(replace_last),
        warns="Retracer is now lightning_sgdinf.replay.Replayer",
    ),
    "CounterfactualRetraining(epochs='all')": Call(
        old=lambda: retrain(epochs="all"),
        new=lambda: update(CounterfactualReplay("all")),
        warns="CounterfactualRetraining is now lightning_sgdinf.updates.CounterfactualReplay",
    ),
    "CounterfactualRetraining of a retracer": Call(
        old=retrain_with_retracer,
        new=lambda: update(CounterfactualReplay(1, replace_last)),
        warns="CounterfactualRetraining is now lightning_sgdinf.updates.CounterfactualReplay",
    ),
    "tasks.retraining.Counterfactual": Call(
        old=lambda: update(Counterfactual()),
        new=lambda: update(CounterfactualReplay(1)),
        warns="lightning_sgdinf.tasks.retraining.Counterfactual is now lightning_sgdinf.updates.CounterfactualReplay",
    ),
    "ScratchRetraining": Call(
        old=lambda: ScratchRetraining(fit, small_run().train.dataset)(SELECTION).state,
        new=lambda: update(FreshTraining(fit)),
        warns="ScratchRetraining is now lightning_sgdinf.updates.FreshTraining",
    ),
    "answer(question)": Call(
        old=lambda: scores(Answering()),
        new=lambda: scores(Estimating()),
        warns="Answering.answer(question) is now estimate(run, query)",
        here=False,
    ),
    "visit that returns a tuple": Call(
        old=lambda: scores(VisitingInPairs()),
        new=lambda: scores(SgdInfluence()),
        warns="a tuple (adjoint, slopes) from VisitingInPairs.visit is now PulledStep, as at.pull returns",
        here=False,
    ),
    "evidence.size": Call(
        old=lambda: scores(Ranking("size")),
        new=lambda: scores(Ranking("examples")),
        warns="size of a run is now examples",
    ),
    "LogWriter.lanes": Call(
        old=lambda: buffers_of_a_writer("lanes"),
        new=lambda: buffers_of_a_writer("take_buffers"),
        warns="LogWriter.lanes is now LogWriter.take_buffers",
    ),
    "Writer.lanes": Call(
        old=lambda: take_buffers_of(LanesWriter())(LAYOUT)["float32"].zero_(),
        new=lambda: torch.zeros(3),
        warns="Writer.lanes is now Writer.take_buffers",
        here=False,
    ),
    "Detection.found": Call(
        old=lambda: torch.tensor(DETECTION.found),
        new=lambda: torch.tensor(DETECTION.cumulative_hits),
        warns="Detection.found is now Detection.cumulative_hits",
    ),
}
"""What was typed in earlier releases other than as a name to import."""


def bits(thing: Tensor | ModelState) -> list[tuple[str, bytes]]:
    if isinstance(thing, Tensor):
        return [("values", thing.numpy().tobytes())]
    return [(f"{part} {name} {key}", value.numpy().tobytes()) for part, name, key, value in thing.items()]


@pytest.mark.parametrize("what", CALLS)
def test_an_old_call_gives_what_the_new_one_gives_and_says_so(what: str) -> None:
    call = CALLS[what]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = call.old()
    places = {warning.filename for warning in caught if str(warning.message).startswith(f"{call.warns};")}
    assert places, [str(warning.message) for warning in caught]
    assert places == {__file__} or not call.here, "the warning points at the line that is to change"
    assert {warning.category for warning in caught} == {DeprecationWarning}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = call.new()
    assert bits(given) == bits(expected)
