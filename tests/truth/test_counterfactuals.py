"""Chunks, resumption, shortened runs, fallbacks and refusals of counterfactual training."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.errors import (
    ConfigurationError,
    LogExistsError,
    StateNotStoredError,
    StepMismatchError,
    UnsupportedRunError,
)
from lightning_sgdinf.query import ExampleLoss, FunctionQuery, Margin, MeanLoss, PerClassLoss
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.testing.runs import EXAMPLES, NEVER_DRAWN, SmallNet, SmallRun, small_run
from lightning_sgdinf.truth import Counterfactuals, Truth
from lightning_sgdinf.truth.ledger import Ledger
from lightning_sgdinf.truth.runs import StackedRuns
from tests.adjoint.cases import BY_NAME, edited, record, thinned

REPLICAS = 40_000  # bytes, in which a few runs of the small net fit at once, and not all


@pytest.fixture
def small() -> SmallRun:
    return small_run()


def runner(**more: Any) -> InfluenceRunner:
    return InfluenceRunner(accelerator="cpu", progress=False, **more)


def measured(small: SmallRun, *, memory_bytes: int = 1 << 30, model: Any = None, **more: Any) -> Truth:
    how = runner(memory_bytes=memory_bytes)
    more = {"log": small.log, **more}
    return how.counterfactuals(model or small.model, small.train, small.validation, **more)


def plain(
    small: SmallRun, leave_out: tuple[int, ...], *, first: int = 0, last: int | None = None, reduced: bool = False
) -> Tensor:
    """The run by hand; returns the losses of the validation examples."""
    model = SmallNet()
    model.load_state_dict(small.log.state(0).params)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    x, y = small.train.dataset.tensors  # type: ignore[attr-defined]
    for step in small.log.steps(0, len(small.log) if last is None else last):
        ids = torch.tensor(step.example_ids)
        weights = torch.ones(len(ids), dtype=torch.float64)
        if step.index >= first:
            weights = torch.tensor([float(int(i) not in leave_out) for i in ids], dtype=torch.float64)
        total = (weights * F.cross_entropy(model(x[ids]), y[ids], reduction="none")).sum()
        optimizer.zero_grad()
        (total / (weights.sum() if reduced else len(ids))).backward()
        optimizer.step()
    x, y = small.validation.dataset.tensors  # type: ignore[attr-defined]
    return F.cross_entropy(model(x), y, reduction="none").detach()


def test_every_single_example(small: SmallRun) -> None:
    truth = measured(small)
    base = plain(small, ()).mean()
    expected = torch.stack([plain(small, (j,)).mean() for j in range(EXAMPLES)]) - base
    assert truth.leave_out == tuple((j,) for j in range(EXAMPLES))
    assert (truth.values[:, 0] - expected).abs().max() < 1e-12
    assert truth.values[NEVER_DRAWN, 0] == 0
    assert truth.values.count_nonzero() == EXAMPLES - 1, "the test is degenerate"
    assert abs(float(truth.base) - float(base)) < 1e-12
    assert truth.verified is not None
    assert truth.verified.steps == len(small.log)
    assert torch.equal(truth.scores().values, truth.values)


def test_runs_start_where_they_leave_the_recorded_one(small: SmallRun) -> None:
    ids = small.log.step(2).example_ids
    truth = measured(small, leave_out=[[int(ids[0])]])
    assert truth.steps_taken == 2 * (len(small.log) - 2)


def test_chunks_change_nothing(small: SmallRun) -> None:
    whole, parts = measured(small), measured(small, memory_bytes=REPLICAS)
    assert 1 < parts.at_once < EXAMPLES - 1 == whole.at_once
    assert (whole.values - parts.values).abs().max() < 1e-12
    assert f"{parts.at_once} at once" in " ".join(parts.notes)


def test_it_goes_on_where_it_stopped(small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = tmp_path / "part.h5", measured(small)
    add = Ledger.add

    def interrupted(self: Ledger, numbers: Any, values: Tensor, steps: int) -> None:
        add(self, numbers, values, steps)
        self.save()
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(small, resume=path, memory_bytes=REPLICAS)
    saved: list[int] = []
    monkeypatch.setattr(Ledger, "add", lambda self, numbers, *rest: (saved.extend(numbers), add(self, numbers, *rest)))
    truth = measured(small, resume=path)
    assert 0 < len(saved) < EXAMPLES - 1
    assert (whole.values - truth.values).abs().max() < 1e-12
    done = len(saved)
    again = measured(small, resume=path)
    assert len(saved) == done
    assert torch.equal(again.values, truth.values)
    with pytest.raises(ConfigurationError, match="another measurement"):
        measured(small, resume=path, query=PerClassLoss())


@pytest.mark.parametrize(("first", "last"), [(4, None), (0, 5), (3, 7)])
def test_shortened_runs(small: SmallRun, first: int, last: int | None) -> None:
    with runner().truth(small.model, small.train, small.validation, log=small.log) as truth:
        measured = truth.measure([[0], [1, 7], [NEVER_DRAWN]], first_step=first, last_step=last)
    base = plain(small, (), last=last).mean()
    for ids, value in zip(measured.leave_out, measured.values[:, 0], strict=True):
        expected = plain(small, ids, first=first, last=last).mean() - base
        assert abs(float(value - expected)) < 1e-12
    assert measured.values[:2].count_nonzero() == 2, "the test is degenerate"


def test_reduced_divisor(small: SmallRun) -> None:
    truth = measured(small, leave_out=[[2], [0, 3, 6, 9]], divisor="reduced")
    base = plain(small, ()).mean()
    for one, value in zip(truth.leave_out, truth.values[:, 0], strict=True):
        assert abs(float(value - (plain(small, one, reduced=True).mean() - base))) < 1e-12
    assert (truth.values - measured(small, leave_out=truth.leave_out).values).abs().min() > 1e-4


QUERIES = (MeanLoss(), PerClassLoss(), ExampleLoss((0, 4)), Margin(), Margin((1, 2)))


@pytest.mark.parametrize("query", QUERIES, ids=repr)
def test_every_query_is_asked_of_all_models_at_once(small: SmallRun, query: Any) -> None:
    with runner().truth(small.model, small.train, small.validation, log=small.log, query=query) as truth:
        together = truth.measure([[0], [1, 7]])
        assert truth.stacked.note == ""
        truth.stacked.note = "one after another"
        alone = truth.measure([[0], [1, 7]])
    assert together.values.shape == (2, len(together.queries))
    assert together.values.count_nonzero() == together.values.numel()
    assert (together.values - alone.values).abs().max() < 1e-12
    assert together.better == (query.better,) * len(together.queries)


def test_a_query_that_looks_at_numbers_is_asked_one_by_one(small: SmallRun) -> None:
    def first_weight(model: Any, data: Any) -> Tensor:
        return model[0].weight.sum() * (2.0 if float(model[0].weight.detach().sum()) > 0 else 1.0)

    truth = measured(small, query=FunctionQuery(first_weight), leave_out=[[0]])
    assert any("asked of one model after another" in note for note in truth.notes)
    assert truth.values[0, 0] != 0


def test_a_query_that_replaces_a_parameter_is_named(small: SmallRun) -> None:
    def replacing(model: Any, data: Any) -> Tensor:
        model[0].weight = torch.nn.Parameter(model[0].weight.detach().clone())
        return model[0].weight.sum()

    with pytest.raises(ConfigurationError, match="query replaced the parameter"):
        measured(small, model=copy.deepcopy(small.model), query=FunctionQuery(replacing), leave_out=[[0]])


class Looking(SmallNet):
    """Branches on a value, which cannot be vectorised."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        return loss if float(loss.detach()) > 0 else loss * 0


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class WithCustom(SmallNet):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(Custom.apply(self(batch[0])), batch[1])


@pytest.mark.parametrize("kind", [Looking, WithCustom])
def test_what_cannot_be_vectorised_runs_one_after_another(small: SmallRun, kind: type[SmallNet]) -> None:
    sets = [[0], [1, 7], [NEVER_DRAWN]]
    truth = measured(small, model=kind(), leave_out=sets)
    assert truth.at_once == 1
    assert any(note.startswith("The runs were taken one after another: ") for note in truth.notes)
    assert (truth.values - measured(small, leave_out=sets).values).abs().max() < 1e-12


class LookingLate(SmallNet):
    """Branches on a value in some steps only, which no step that is tried shows."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        return loss * 2 / 2 if self.late and float(loss.detach()) > 0 else loss

    late = False


def test_what_turns_out_late_not_to_be_vectorised(small: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [[j] for j in range(EXAMPLES)]
    model, advance, calls = LookingLate(), StackedRuns.advance, []

    def later(self: StackedRuns, stop: int, count: Any) -> None:
        model.late = len(calls) == 1
        calls.append(self.numbers)
        advance(self, stop, count)

    monkeypatch.setattr(StackedRuns, "advance", later)
    truth = measured(small, model=model, leave_out=sets, memory_bytes=REPLICAS)
    assert len(calls) == 2
    assert any("one after another" in note for note in truth.notes)
    assert (truth.values - measured(small, leave_out=sets).values).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["momentum-ema", "batchnorm-swa"])
def test_averages_one_after_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(BY_NAME[name])
    together = runner().counterfactuals(run.module, run.train, run.validation, log=run.log, leave_out=[[0], [3]])
    monkeypatch.setattr("lightning_sgdinf.truth.verify.known_optimizers", lambda: ())
    alone = runner().counterfactuals(run.module, run.train, run.validation, log=run.log, leave_out=[[0], [3]])
    assert (together.at_once, alone.at_once) == (2, 1)
    assert "not known to work element by element" in alone.notes[0]
    assert together.values.abs().min() > 1e-6, "the test is degenerate"
    assert (together.values - alone.values).abs().max() < 1e-10


def test_few_stored_states_are_enough(small: SmallRun) -> None:
    sparse = thinned(small.log, [0, 4])
    assert (measured(small).values - measured(small, log=sparse).values).abs().max() < 1e-12
    with pytest.raises(StateNotStoredError, match="first_step"):
        measured(small, log=thinned(small.log, [5]))
    with runner().truth(small.model, small.train, small.validation, log=thinned(small.log, [5])) as truth:
        late = truth.measure([[0]], first_step=6)
    assert late.values[0, 0] != 0


@pytest.mark.parametrize("alone", [False, True])
def test_a_record_that_does_not_come_out_is_refused_first(
    small: SmallRun, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if alone:
        monkeypatch.setattr("lightning_sgdinf.truth.verify.known_optimizers", lambda: ())
    monkeypatch.setattr(Counterfactuals, "chunks", lambda *_: pytest.fail("a run was started"))
    step = small.log.step(4)
    group = replace(step.groups[0], options={**step.groups[0].options, "lr": 0.21})
    with pytest.raises(StepMismatchError, match="cannot be reproduced, so nothing was left out"):
        measured(small, log=edited(small.log, steps={4: replace(step, groups=(group,))}))


def test_changes_from_outside_are_refused(small: SmallRun) -> None:
    log = edited(small.log, steps={5: replace(small.log.step(5), changed=("param 0.weight",))})
    with pytest.raises(UnsupportedRunError, match="before step 5"):
        measured(small, log=log)
    with runner().truth(small.model, small.train, small.validation, log=log) as truth:
        assert truth.measure([[0]], first_step=5).values[0, 0] != 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"leave_out": [[EXAMPLES]]}, "ids in 0 .. 12"),
        ({"leave_out": [[-1]]}, "ids in 0 .. 12"),
        ({"leave_out": [[0], []]}, "at least one id"),
        ({"leave_out": []}, "at least one set"),
        ({"first_step": 9}, "0 <= first_step < last_step <= 9"),
        ({"last_step": 10}, "0 <= first_step < last_step <= 9"),
    ],
)
def test_questions_without_answer(small: SmallRun, more: dict[str, Any], message: str) -> None:
    with (
        runner().truth(small.model, small.train, small.validation, log=small.log) as truth,
        pytest.raises(ConfigurationError, match=message),
    ):
        truth.measure(**more)


def test_saved_and_loaded(small: SmallRun, tmp_path: Path) -> None:
    truth = measured(small, leave_out=[[0], [1, 7]], query=PerClassLoss())
    truth.save(tmp_path / "truth.h5")
    again = Truth.load(tmp_path / "truth.h5")
    for name in ("values", "base", "drift"):
        assert torch.equal(getattr(again, name), getattr(truth, name))
    for name in ("leave_out", "queries", "better", "verified", "notes", "labels", "provenance", "steps_taken"):
        assert getattr(again, name) == getattr(truth, name)
    with pytest.raises(LogExistsError):
        truth.save(tmp_path / "truth.h5")
    with pytest.raises(ConfigurationError, match="each of the 13 examples left out once"):
        truth.scores()
