"""The linearised leave-one-out run against one written out step by step, and real removal where that is linear."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.errors import ConfigurationError, StepMismatchError, UnsupportedRunError
from lightning_sgdinf.estimators import AccumulatedInfluence, SgdInfluence
from lightning_sgdinf.query import FunctionQuery
from lightning_sgdinf.testing import EstimatorSuite, relative_error
from lightning_sgdinf.testing.updates import FORMULAS
from tests.adjoint.cases import (
    BY_NAME,
    MOMENTUM,
    PAIRS,
    REPEATS,
    Batching,
    Case,
    Recorded,
    altered,
    decaying,
    edited,
    parameter_groups,
    query_after,
    record,
    reseed,
    thinned,
)


def scores(run: Recorded, estimator: Any, **options: Any) -> Scores:
    runner = InfluenceRunner(**{"accelerator": "cpu", "certificate": "off", "progress": False} | options)
    return runner.run(
        run.module, run.train, run.validation, log=run.log, query=options.get("query"), estimator=estimator
    )


def along(run: Recorded, direction: Tensor, estimator: Any, **options: Any) -> Tensor:
    """Scores of a query that is linear in the parameters."""

    def ask(model: nn.Module, data: Any) -> Tensor:
        return direction @ torch.cat([p.reshape(-1) for p in model.parameters()])

    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, **options)
    return runner.run(
        run.module, run.train, run.validation, log=run.log, query=FunctionQuery(ask), estimator=estimator
    ).values[:, 0]


class StepByHand:
    """The map of each step of a case, by the optimizer's formula and the model's, for given example weights."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.x, self.y = case.data()[0].tensors
        named = {n: p.detach() for n, p in case.module().named_parameters()}
        self.names, self.groups = tuple(named), parameter_groups(case, named)
        self.start = named
        self.formula = FORMULAS[case.optimizer]
        kind = getattr(torch.optim, case.optimizer)
        self.defaults = kind([nn.Parameter(torch.zeros(1))], **case.options).defaults

    def __call__(self, t: int, params: Any, memory: Any, weights: Tensor) -> tuple[dict, dict]:
        case = self.case
        total: dict[str, Tensor] = {}
        params = {n: p if p.requires_grad else p.clone().requires_grad_() for n, p in params.items()}
        for k, ids in enumerate(case.batching.steps()[t][1]):
            reseed(t, k)
            logits, _ = case.twice.twin(params, {}, self.x[ids], True, k)
            losses = torch.log(logits.exp().sum(1)) - logits[torch.arange(len(ids)), self.y[ids]]
            penalty = case.module().penalty
            rest = penalty * sum((p * p).sum() for p in params.values()) if penalty else 0.0
            loss = ((weights[ids] * losses).sum() / len(ids) + rest) / case.batching.accumulation
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            total = {n: total.get(n, 0) + g for n, g in zip(params, grads, strict=True)}
        if case.clip is not None and case.clip.algorithm == "norm":
            norm = sum((g * g).sum() for g in total.values()) ** 0.5
            total = {n: g * (case.clip.value / (norm + 1e-6)).clamp(max=1) for n, g in total.items()}
        elif case.clip is not None:
            total = {n: g.clamp(-case.clip.value, case.clip.value) for n, g in total.items()}
        after, kept = {}, {}
        for number, group in enumerate(self.groups):
            options = {**self.defaults, **group, **case.schedule(t, number)}
            for n in group["names"]:
                after[n], kept[n] = self.formula(params[n], total[n], memory.get(n, {}), options)
        return {n: after[n] for n in self.names}, kept

    def displacement(self, example: int) -> Tensor:
        """Of the final parameters, by ``jvp`` of the maps without the example, along the run with it."""
        count = len(self.y)
        ones, without = torch.ones(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        without[example] = 0
        params, memory = self.start, {}
        moved: list[Tensor] = [torch.zeros_like(p) for p in params.values()]
        with torch.random.fork_rng():
            for t in range(len(self.case.batching.steps())):
                flat, build = _flattened(params, memory)

                def take(*tensors: Tensor, t: int = t, build: Any = build) -> tuple[Tensor, ...]:
                    return tuple(_flattened(*self(t, *build(tensors), without))[0])

                ends, slopes = torch.autograd.functional.jvp(take, tuple(flat), tuple(moved))
                params, memory = ({n: _detached(v) for n, v in part.items()} for part in self(t, params, memory, ones))
                recorded, _ = _flattened(params, memory)
                moved = [e - r + s for e, r, s in zip(ends, recorded, slopes, strict=True)]
        return torch.cat([m.reshape(-1) for m in moved[: len(params)]])


def _flattened(params: Any, memory: Any) -> tuple[list[Tensor], Any]:
    """Tensors of a state as a list, and the way back."""
    keys = [(n, k) for n, m in memory.items() for k, v in m.items() if isinstance(v, Tensor)]
    flat = [*params.values(), *(memory[n][k] for n, k in keys)]

    def build(tensors: Any) -> tuple[dict, dict]:
        built = {n: dict(m) for n, m in memory.items()}
        for (n, k), v in zip(keys, tensors[len(params) :], strict=True):
            built[n][k] = v
        return dict(zip(params, tensors, strict=False)), built

    # A key that appears in this step has moved from nothing.
    return flat, build


def _detached(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _detached(v) for k, v in value.items()}
    return value.detach() if isinstance(value, Tensor) else value


CASES = (
    altered(BY_NAME["sgd-mlp-ragged"], name="sgd-decaying", schedule=decaying),
    BY_NAME["sgd-repeats-clip"],
    BY_NAME["sgd-value"],
    altered(BY_NAME["momentum"], name="momentum-pairs", batching=PAIRS),
    altered(
        BY_NAME["dampened"], name="dampened-nesterov", options={**MOMENTUM, "nesterov": True, "weight_decay": 0.05}
    ),
    BY_NAME["maximize"],
    altered(BY_NAME["adam"], name="adam", batching=REPEATS),
    BY_NAME["adamw-groups"],
    BY_NAME["rmsprop-centred"],
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_displacements_are_those_of_the_linearised_run(case: Case) -> None:
    run, hand = record(case), StepByHand(case)
    direction = torch.randn(sum(p.numel() for p in run.module.parameters()), generator=torch.Generator().manual_seed(3))
    direction = direction.double()
    chosen = [0, 3, 7]
    expected = torch.stack([hand.displacement(j) @ direction for j in chosen])
    values = along(run, direction, AccumulatedInfluence())
    assert relative_error(values[chosen], expected) < 1e-9
    first_order = along(run, direction, SgdInfluence())
    assert relative_error(first_order[chosen], expected) > 1e-3, "the test is degenerate"


class Regression(nn.Module):
    """A quadratic loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1).double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.linear(x)[:, 0], y.double())


class QuadraticCase(Case):
    """A case whose model is a linear regression."""

    def module(self) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return Regression()


def removed(run: Recorded, direction: Tensor, **options: Any) -> Tensor:
    """Return the real change of the parameters along a direction, for each example left out."""
    with InfluenceRunner(accelerator="cpu", progress=False).replayer(run.module, run.train, log=run.log) as again:

        def end(weights: Tensor | None) -> Tensor:
            state = again.run(run.log.state(0), 0, len(run.log), weights=weights)
            return direction @ torch.cat([p.reshape(-1) for p in state.params.values()])

        base, rows = end(None), []
        for j in range(run.case.batching.examples):
            weights = torch.ones(run.case.batching.examples, dtype=torch.float64)
            weights[j] = 0
            rows.append(end(weights) - base)
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["sgd-decay-schedule", "momentum", "momentum-pairs", "momentum-cycle"])
def test_equal_to_real_removal_for_a_quadratic_loss(name: str) -> None:
    base = BY_NAME[name]
    case = QuadraticCase(
        name=name,
        model="mlp",
        options={**base.options, "lr": 0.05, "weight_decay": 0.1},
        batching=base.batching,
        schedule=base.schedule if name != "momentum-cycle" else lambda t, g: {"lr": 0.02 * (1 + t % 3)},
    )
    run = record(case)
    direction = torch.tensor([1.0, -2, 0.5, 3, 0.3, 1.5], dtype=torch.float64)
    truth = removed(run, direction)
    assert truth.abs().max() > 1e-3
    assert relative_error(along(run, direction, AccumulatedInfluence()), truth) < 1e-10
    assert relative_error(along(run, direction, SgdInfluence()), truth) > 1e-3, "the test is degenerate"


def test_nearer_to_real_removal_than_the_derivative_is() -> None:
    case = altered(BY_NAME["sgd-mlp-ragged"], options={"lr": 0.1}, batching=Batching(epochs=6))
    run = record(case)
    after = query_after(case)
    ones = torch.ones(12, dtype=torch.float64)
    base = after(ones)
    truth = torch.stack([after(ones - torch.eye(12, dtype=torch.float64)[j]) - base for j in range(12)])
    gaps = {}
    for name, estimator in (
        ("evaluated", AccumulatedInfluence(evaluate=True)),
        ("linear", AccumulatedInfluence()),
        ("derivative", SgdInfluence()),
    ):
        gaps[name] = float((scores(run, estimator).values - truth).norm() / truth.norm())
    assert gaps["linear"] < 0.95 * gaps["derivative"]
    assert gaps["evaluated"] < 0.2 * gaps["linear"]


def test_evaluated_is_the_query_of_the_displaced_model() -> None:
    run = record(BY_NAME["sgd-mlp-ragged"])
    size = sum(p.numel() for p in run.module.parameters())
    moved = torch.stack([along(run, unit, AccumulatedInfluence()) for unit in torch.eye(size, dtype=torch.float64)[:2]])
    end = torch.cat([p.reshape(-1) for p in run.log.state(len(run.log)).params.values()])

    def ask(model: nn.Module, data: Any) -> Tensor:
        first, second = torch.cat([p.reshape(-1) for p in model.parameters()])[:2]
        return torch.stack([first * first, first * second])

    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    values = runner.run(
        run.module,
        run.train,
        run.validation,
        log=run.log,
        query=FunctionQuery(ask, labels=("square", "product")),
        estimator=AccumulatedInfluence(evaluate=True),
    ).values
    there = end[:2, None] + moved
    expected = torch.stack([there[0] ** 2 - end[0] ** 2, there[0] * there[1] - end[0] * end[1]], dim=1)
    assert relative_error(values, expected) < 1e-10


def test_memory_is_said_and_cut_into_passes(caplog: pytest.LogCaptureFixture) -> None:
    run = record(BY_NAME["momentum"])  # 12 examples, one of which is never drawn; parameters, momentum; float64
    size = sum(p.numel() for p in run.module.parameters())
    one = 8 * size * 6
    with caplog.at_level(logging.INFO, logger="lightning_sgdinf"):
        whole = scores(run, AccumulatedInfluence())
    drawn = len({j for t in range(len(run.log)) for j in run.log.step(t).example_ids.tolist()})
    assert drawn < 12
    said = (
        f"One state per example, {drawn * one / 2**20:.1f} MiB in all: {drawn} examples at once, 1 pass over the run."
    )
    assert any(said in message for message in caplog.messages)
    parts = scores(run, AccumulatedInfluence(), memory_bytes=3 * one + 10)
    assert relative_error(parts.values, whole.values) < 1e-12
    assert parts.certificate is not None
    assert f"3 examples at once, {-(-drawn // 3)} passes" in parts.certificate.notes[-1]
    with pytest.raises(ConfigurationError, match=r"examples of \d+ parameters need 0.0 GiB at once.*max_passes is 2"):
        scores(run, AccumulatedInfluence(max_passes=2), memory_bytes=3 * one + 10)
    with pytest.raises(ConfigurationError, match="more memory_bytes"):
        scores(run, AccumulatedInfluence(), memory_bytes=one - 1)


def test_states_are_rebuilt_where_they_are_not_stored() -> None:
    run = record(BY_NAME["momentum-pairs"])
    values = scores(run, AccumulatedInfluence()).values
    sparse = Recorded(run.case, thinned(run.log, [0, 3]), run.train, run.validation)
    assert torch.equal(scores(sparse, AccumulatedInfluence()).values, values)
    state = run.log.state(0)
    next(iter(state.params.values())).add_(1e-3)
    changed = thinned(edited(run.log, states={0: state}), [0, 3])
    with pytest.raises(StepMismatchError, match="state 1, rebuilt"):
        scores(Recorded(run.case, changed, run.train, run.validation), AccumulatedInfluence())


def test_operations_that_cannot_be_vectorised() -> None:
    run = record(BY_NAME["momentum"])

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return Opaque.apply(grad)

    module = run.module
    plain = module.net.forward
    module.net.forward = lambda x: Opaque.apply(plain(x))
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    values = runner.run(module, run.train, run.validation, log=run.log, estimator=AccumulatedInfluence())
    assert relative_error(values.values, scores(run, AccumulatedInfluence()).values) < 1e-12


@pytest.mark.parametrize(("name", "words"), [("batchnorm", "running statistics"), ("momentum-ema", "running averages")])
def test_what_it_does_not_carry_is_refused(name: str, words: str) -> None:
    with pytest.raises(UnsupportedRunError, match=words):
        scores(record(BY_NAME[name]), AccumulatedInfluence())


def test_impossible_settings() -> None:
    with pytest.raises(ConfigurationError, match="max_passes"):
        AccumulatedInfluence(max_passes=0)


class TestAccumulated(EstimatorSuite):
    estimator = AccumulatedInfluence()
