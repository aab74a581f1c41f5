"""Every estimator against its formula in a loop by hand, or against autograd through the unrolled run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError
from lightning_sgdinf.estimators import FinalParameters, LastEpochs, NoHessian, SgdInfluence, TracIn
from lightning_sgdinf.estimators.base import Estimator
from lightning_sgdinf.replay import epoch_start
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.testing import relative_error
from tests.adjoint.cases import BY_NAME, Batching, Case, Recorded, altered, record, thinned, unrolled

PLAIN = altered(BY_NAME["sgd-mlp-ragged"], schedule=lambda t, group: {"lr": 0.3 / (1 + t)})
VALIDATION = 10


def scores(run: Recorded, estimator: Estimator, **options: Any) -> Tensor:
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, **options)
    return runner.run(run.module, run.train, run.validation, log=run.log, estimator=estimator).values


class Hand:
    """Gradients of the case's model by its formulas, for loops by hand."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.run = record(case)
        self.train, self.validation = case.data()
        self.steps = [(self.run.log.step(t), case.schedule(t, 0)["lr"]) for t in range(len(self.run.log))]

    def losses(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits, _ = self.case.twice.twin(params, {}, x, True, 0)
        return torch.log(logits.exp().sum(1)) - logits[torch.arange(len(y)), y]

    def gradient(self, state: ModelState, loss: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        params = {n: p.clone().requires_grad_() for n, p in state.params.items()}
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(params), list(params.values()))])

    def query(self, state: ModelState) -> Tensor:
        return self.gradient(state, lambda p: self.losses(p, *self.validation[:]).mean())

    def example(self, state: ModelState, j: int) -> Tensor:
        return self.gradient(state, lambda p: self.losses(p, *self.train[[j]])[0])

    def curvature(self, state: ModelState, ids: Any, v: Tensor) -> Tensor:
        """``H v`` by the hessian itself, one row at a time."""
        params = {n: p.clone().requires_grad_() for n, p in state.params.items()}
        mean = self.losses(params, *self.train[ids]).mean()
        grads = torch.autograd.grad(mean, list(params.values()), create_graph=True)
        flat = torch.cat([g.flatten() for g in grads])
        rows = [torch.autograd.grad(g, list(params.values()), retain_graph=True) for g in flat]
        return torch.stack([torch.cat([r.flatten() for r in row]) for row in rows]) @ v

    def empty(self) -> Tensor:
        return torch.zeros(len(self.train), 1, dtype=torch.float64)

    def state(self, t: int) -> ModelState:
        return self.run.log.state(t)


@pytest.fixture(scope="module")
def hand() -> Hand:
    return Hand(PLAIN)


def test_exact_is_algorithm_two_of_the_reference(hand: Hand) -> None:
    expected, u = hand.empty(), hand.query(hand.state(len(hand.steps)))
    for t in range(len(hand.steps) - 1, -1, -1):
        step, lr = hand.steps[t]
        for j in step.example_ids:
            expected[j] += lr / len(step.example_ids) * (u @ hand.example(hand.state(t), j))
        u = u - lr * hand.curvature(hand.state(t), step.example_ids, u)
    assert relative_error(scores(hand.run, SgdInfluence()), expected) < 1e-12


def test_without_hessian(hand: Hand) -> None:
    expected, u = hand.empty(), hand.query(hand.state(len(hand.steps)))
    for t, (step, lr) in enumerate(hand.steps):
        for j in step.example_ids:
            expected[j] += lr / len(step.example_ids) * (u @ hand.example(hand.state(t), j))
    assert relative_error(scores(hand.run, NoHessian()), expected) < 1e-12
    assert relative_error(scores(hand.run, SgdInfluence()), expected) > 1e-3, "the test is degenerate"


@pytest.mark.parametrize(("scale", "frozen"), [(0.25, False), (1.7, True)])
def test_damped_curvature_of_plain_sgd_by_the_hessian_itself(hand: Hand, scale: float, frozen: bool) -> None:
    total = len(hand.steps)
    expected, u = hand.empty(), hand.query(hand.state(total))
    for t in range(total - 1, -1, -1):
        step, lr = hand.steps[t]
        state = hand.state(total if frozen else t)
        for j in step.example_ids:
            expected[j] += lr / len(step.example_ids) * (u @ hand.example(state, j))
        u = u - scale * lr * hand.curvature(state, step.example_ids, u)
    damped = FinalParameters(3, curvature_scale=scale) if frozen else SgdInfluence(curvature_scale=scale)
    assert relative_error(scores(hand.run, damped), expected) < 1e-12
    assert relative_error(scores(hand.run, replace(damped, curvature_scale=1.0)), expected) > 1e-3, "degenerate"


@pytest.mark.parametrize("name", ["momentum-pairs", "nesterov", "adam", "adamw-groups", "batchnorm-ema"])
def test_damped_curvature_of_any_optimizer(name: str) -> None:
    case = BY_NAME[name]
    run = record(case)
    damped = SgdInfluence(curvature_scale=0.4)
    assert relative_error(scores(run, damped), unrolled(case, curvature_scale=0.4)) < 1e-10
    assert relative_error(scores(run, SgdInfluence()), unrolled(case, curvature_scale=0.4)) > 1e-3, "degenerate"
    first = epoch_start(run.log, 1)
    last = unrolled(case, first_step=first, curvature_scale=0.4)
    assert relative_error(scores(run, LastEpochs(1, damped)), last) < 1e-10
    none = scores(run, NoHessian())
    assert torch.equal(scores(run, SgdInfluence(curvature_scale=0)), none)
    assert relative_error(none, unrolled(case, curvature_scale=0)) < 1e-10


@pytest.mark.parametrize("every", [1, 2, 4, None])
def test_tracin(hand: Hand, every: int | None) -> None:
    total = len(hand.steps)
    ends = {t for t in range(total) if t == total - 1 or hand.steps[t][0].epoch != hand.steps[t + 1][0].epoch}
    expected, u = hand.empty(), hand.query(hand.state(total))
    for t in range(total - 1, -1, -1):
        step, lr = hand.steps[t]
        if t in ends if every is None else t % every == 0:
            u = hand.query(hand.state(t))
        for j in step.example_ids:
            expected[j] += lr / len(step.example_ids) * (u @ hand.example(hand.state(t), j))
    assert relative_error(scores(hand.run, TracIn(every=every)), expected) < 1e-12


@pytest.mark.parametrize("epochs", [1, 2])
def test_final_parameters_are_frozen(hand: Hand, epochs: int) -> None:
    total = len(hand.steps)
    final = hand.state(total)
    expected, u = hand.empty(), hand.query(final)
    for step, lr in reversed([s for s in hand.steps if s[0].epoch >= 3 - epochs]):
        for j in step.example_ids:
            expected[j] += lr / len(step.example_ids) * (u @ hand.example(final, j))
        u = u - lr * hand.curvature(final, step.example_ids, u)
    assert relative_error(scores(hand.run, FinalParameters(epochs)), expected) < 1e-12
    only_the_last = thinned(hand.run.log, [], keep="final")
    run = Recorded(hand.case, only_the_last, hand.run.train, hand.run.validation)
    assert torch.equal(scores(run, FinalParameters(epochs)), scores(hand.run, FinalParameters(epochs)))


@pytest.mark.parametrize("name", ["momentum-pairs", "adamw", "nesterov", "batchnorm-ema"])
@pytest.mark.parametrize("n", [1, 2])
def test_last_epochs_is_exact_for_weights_in_those_epochs(name: str, n: int) -> None:
    case = BY_NAME[name]
    run = record(case)
    first = epoch_start(run.log, n)
    assert first == next(t for t in range(len(run.log)) if run.log.step(t).epoch >= case.batching.epochs - n)
    exact = unrolled(case, first_step=first)
    assert relative_error(scores(run, LastEpochs(n)), exact) < 1e-10
    few = Recorded(case, thinned(run.log, range(first, len(run.log)), f"last_epochs({n})"), run.train, run.validation)
    assert torch.equal(scores(few, LastEpochs(n)), scores(run, LastEpochs(n)))
    if first > 0:
        with pytest.raises(StateNotStoredError, match=rf"last_epochs\({n}\).*every_step"):
            scores(few, SgdInfluence())


def test_last_epochs_of_another_estimator(hand: Hand) -> None:
    first = epoch_start(hand.run.log, 1)
    expected, u = hand.empty(), hand.query(hand.state(len(hand.steps)))
    for t, (step, lr) in list(enumerate(hand.steps))[first:]:
        for j in step.example_ids:
            expected[j] += lr / len(step.example_ids) * (u @ hand.example(hand.state(t), j))
    assert relative_error(scores(hand.run, LastEpochs(1, NoHessian())), expected) < 1e-12


def test_more_epochs_than_there_were_is_all_of_them(hand: Hand) -> None:
    assert torch.equal(scores(hand.run, LastEpochs(99)), scores(hand.run, SgdInfluence()))


@pytest.mark.parametrize("name", ["momentum-pairs", "momentum-ema", "adam-dead", "maximize", "adamw-groups"])
def test_reduced_divisor_is_the_derivative_of_the_renormalised_loss(name: str) -> None:
    case = BY_NAME[name]
    exact = unrolled(case, divisor="reduced")
    values = scores(record(case), SgdInfluence(divisor="reduced"))
    assert relative_error(values, exact) < 1e-10
    assert relative_error(values, unrolled(case)) > 1e-2, "the test is degenerate"


def test_epochs_add_up() -> None:
    case = BY_NAME["adamw-groups"]
    run = record(case)
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, per_epoch=True)
    result = runner.run(run.module, run.train, run.validation, log=run.log)
    parts = result.per_epoch
    assert parts is not None
    assert parts.shape == (3, 12, 1)
    assert torch.allclose(parts.sum(0), result.values, rtol=1e-13, atol=1e-16)
    for n in (1, 2):
        assert torch.allclose(parts[3 - n :].sum(0), scores(run, LastEpochs(n)), rtol=1e-12, atol=1e-16)
    assert parts[0].abs().max() > 0


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [SgdInfluence, FinalParameters])
def test_refused_scales_of_the_curvature(kind: type, scale: float) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"{kind.__name__}\(curvature_scale\): expected .* >= 0 .*, got {scale}"
    ):
        kind(curvature_scale=scale)


@pytest.mark.parametrize("made", [lambda: LastEpochs(0), lambda: FinalParameters(0), lambda: TracIn(every=0)])
def test_refused_settings(made: Callable[[], Estimator]) -> None:
    with pytest.raises(ConfigurationError, match=r"expected .*, got 0"):
        made()


def test_what_calls_itself_exact() -> None:
    assert [e.exact for e in (SgdInfluence(), LastEpochs(2), LastEpochs(1, NoHessian()))] == [True, True, False]
    assert not any(e.exact for e in (SgdInfluence(curvature_scale=0.9), LastEpochs(1, SgdInfluence(curvature_scale=0))))
    assert not any(e.exact for e in (SgdInfluence(divisor="reduced"), NoHessian(), TracIn(), FinalParameters()))


def test_where_epochs_start() -> None:
    log = record(altered(BY_NAME["sgd"], batching=Batching(examples=11, epochs=4))).log
    assert [epoch_start(log, n) for n in (1, 2, 3, 4, 5)] == [9, 6, 3, 0, 0]
