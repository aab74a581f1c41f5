"""Forecasts of runs that are under way, against the formula by hand and against finite differences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Draw, Header, MicroBatch, ParamGroup, Step
from lightning_sgdinf.query import MeanLoss
from lightning_sgdinf.refinement.forecast import Rows, forecast
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth import Counterfactuals
from lightning_sgdinf.truth.plan import make_plan
from tests.adjoint.cases import BY_NAME, Recorded, record

N, RATE, PENALTY = 9, 0.5, 0.1


class LogisticRegression(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 1, bias=False, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x)[:, 0], y) + PENALTY / 2 * self.weight.square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1])


class ByHand:
    """Logistic regression by plain SGD, everything written out."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(N + 6, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randint(0, 2, (N + 6,), generator=generator).double()
        self.batches = [b for _ in range(3) for b in torch.randperm(N, generator=generator).split(3)]

    def own(self, theta: Tensor, ids: Tensor) -> Tensor:
        """Gradient of each example's loss, without the penalty."""
        return (torch.sigmoid(self.x[ids] @ theta) - self.y[ids])[:, None] * self.x[ids]

    def train(self, without: int | None = None, steps: int = 9) -> list[Tensor]:
        states = [torch.full((4,), 0.1, dtype=torch.float64)]
        for ids in self.batches[:steps]:
            theta, grads = states[-1], self.own(states[-1], ids)
            total = (grads * (ids != without)[:, None]).sum(0) if without is not None else grads.sum(0)
            states.append(theta - RATE * (total / len(ids) + PENALTY * theta))
        return states

    def adjoints(self) -> list[Tensor]:
        states, held = self.train(), torch.arange(N, N + 6)
        u = [self.own(states[-1], held).mean(0)]
        for theta, ids in zip(reversed(states[:-1]), reversed(self.batches), strict=True):
            p = torch.sigmoid(self.x[ids] @ theta)
            hessian = (self.x[ids].T * (p * (1 - p))) @ self.x[ids] / len(ids) + PENALTY * torch.eye(
                4, dtype=torch.float64
            )
            u.append(u[-1] - RATE * hessian @ u[-1])
        return u[::-1]

    def log(self) -> MemoryLog:
        states = {t: ModelState(params={"weight": s[None]}) for t, s in enumerate(self.train())}
        group = ParamGroup(params=("weight",), options={"lr": RATE})
        steps = [
            Step(
                index=t,
                epoch=t // 3,
                global_step=t,
                micro_batches=(MicroBatch(batch_idx=t % 3, draws=(Draw(example_ids=ids.numpy()),)),),
                groups=(group,),
            )
            for t, ids in enumerate(self.batches)
        ]
        header = Header(
            run_id="by hand",
            created="2026-01-01T00:00:00+00:00",
            model="LogisticRegression",
            optimizer="torch.optim.sgd.SGD",
            parameters=(("weight", (1, 4), "float64"),),
            precision="64-true",
            datasets=(("TensorDataset", N),),
        )
        return MemoryLog(header=header, steps=steps, states=states)


@pytest.mark.parametrize("rung", [2, 5, 8])
def test_the_formula(rung: int) -> None:
    hand = ByHand()
    train, validation = (DataLoader(TensorDataset(hand.x[s], hand.y[s])) for s in (slice(0, N), slice(N, None)))
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.truth(LogisticRegression(), train, validation, log=hand.log()) as truth:
        runs = list(truth.chunks(make_plan(truth.log, N, None), range(N)))
        for chunk in runs:
            chunk.advance(rung, lambda n: None)
        forecasts = torch.zeros(N, dtype=torch.float64)
        for chunk, values in zip(runs, forecast(truth, runs), strict=True):
            forecasts[chunk.numbers] = values[:, 0]
    states, u = hand.train(), hand.adjoints()
    plain = torch.zeros(N, dtype=torch.float64)
    for j in range(N):
        moved = hand.train(without=j, steps=rung)[-1] - states[rung]
        expected = plain[j] = moved @ u[rung]
        for t in range(rung, 9):
            if j in hand.batches[t]:
                for at, which in ((moved, "displaced"), (torch.zeros(4), "recorded")):
                    slope = RATE / 3 * hand.own(states[t] + at, torch.tensor([j]))[0] @ u[t + 1]
                    if which == "displaced":
                        expected = expected + slope
                    else:
                        plain[j] += slope
        assert abs(float(forecasts[j] - expected)) < 1e-12
    assert (forecasts - plain).abs().max() > 1e-5, "the test is degenerate"


@contextmanager
def opened(run: Recorded) -> Iterator[Counterfactuals]:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.truth(run.module, run.train, run.validation, log=run.log, query=MeanLoss()) as truth:
        yield truth


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adamw-groups", "batchnorm-triples", "momentum-ema", "asgd-scalar"])
def test_departures_are_the_derivative_along_them(name: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if alone:
        monkeypatch.setattr("lightning_sgdinf.truth.verify.known_optimizers", lambda: ())
    run = record(BY_NAME[name])
    total, rung = len(run.log), len(run.log) - 1
    gone = _gone_before(run, rung)
    with opened(run) as truth:
        (runs,) = truth.chunks(make_plan(truth.log, truth.examples, None), gone)
        runs.advance(rung, lambda n: None)
        (forecasts,) = forecast(truth, [runs])
        for number, value in zip(runs.numbers, forecasts[:, 0], strict=True):
            taken = _left_out(run, truth, number, rung)
            ends = [_asked_from(truth, taken, eps, rung, total) for eps in (1e-4, -1e-4)]
            assert abs(float(value) - (ends[0] - ends[1]) / 2e-4) < 1e-6 * max(1e-2, abs(float(value)))
    assert forecasts.abs().max() > 1e-5, "the test is degenerate"


def _gone_before(run: Recorded, rung: int) -> list[int]:
    """Examples that were drawn before a step and not after it."""
    late = {int(i) for step in run.log.steps(rung, len(run.log)) for i in step.example_ids}
    early = {int(i) for step in run.log.steps(0, rung) for i in step.example_ids}
    return sorted(early - late)[:2]


def _left_out(run: Recorded, truth: Counterfactuals, example: int, rung: int) -> list[tuple[ModelState, ModelState]]:
    """Recorded and counterfactual states ``1 .. rung``."""
    weights = torch.ones(truth.examples, dtype=torch.float64)
    weights[example] = 0
    again, state, states = Replayer(run.log, truth.run.objective), run.log.state(0), []
    for step in run.log.steps(0, rung):
        state = again.advance(state, step, weights=weights)
        states.append((run.log.state(step.index + 1), state))
    return states


def _asked_from(
    truth: Counterfactuals,
    taken: list[tuple[ModelState, ModelState]],
    eps: float,
    rung: int,
    total: int,
) -> float:
    """The query after the recorded steps from a state ``eps`` of the way to the counterfactual one."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        return a + eps * (b - a) if a.is_floating_point() and a.shape == b.shape else a

    def mixed(one: ModelState, other: ModelState) -> ModelState:
        return ModelState(
            params={n: between(v, other.params[n]) for n, v in one.params.items()},
            buffers={n: between(v, other.buffers[n]) for n, v in one.buffers.items()},
            optimizer={
                n: {k: between(v, other.optimizer[n][k]) for k, v in e.items()} for n, e in one.optimizer.items()
            },
        )

    now = mixed(*taken[-1])
    again = Replayer(truth.log, truth.run.objective)
    if truth.log.average is None:
        return float(truth.query.value(again.run(now, rung, total)))
    average: dict[str, Tensor] = {}
    for step in truth.log.steps(0, total):
        now = mixed(*taken[step.index]) if step.index < rung else again.advance(now, step)
        assert step.average is not None
        a, b = step.average
        values = {**now.params, **now.buffers}
        average = {n: b * v + (a * average[n] if n in average else 0) for n, v in values.items()}
    return float(truth.query.value(replace(now, params={n: average[n] for n in now.params})))


def test_rows_are_told_apart_only_where_they_are_separate() -> None:
    for name, separate in (("sgd", True), ("maximize", True), ("nesterov", False), ("dampened", False)):
        run = record(BY_NAME[name])
        with opened(run) as truth:
            step = run.log.step(1)
            rows = Rows(truth.run.objective, step, step.micro_batches[0], run.log.state(1))
            assert rows.are_separate() is separate, name
