"""compile=True: the traced kernel gives the eager kernel's numbers, and is not used where it might not."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.adjoint import compiled as adjoint_compiled
from lightning_sgdinf.adjoint import step as adjoint_step
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.replay.stand_in import TrainerStandIn
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.testing import relative_error
from tests.adjoint.cases import BY_NAME, Case, Recorded, record, unrolled
from tests.adjoint.models import CLASSES, MODELS, Classifier, Model

runs: Counter[str] = Counter()


def as_traced(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph itself in place of what a compiler makes of it: its first half, then its second one."""
    del inputs
    half = ("first", "graph")[runs["halves"] % 2]
    runs["halves"] += 1

    def function(*tensors: Tensor) -> Sequence[Tensor]:
        runs[half] += runs["halves"] % 2 == 0  # not while it is being made
        return graph(*tensors)

    return function


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    runs.clear()
    if "slow" not in request.keywords:
        monkeypatch.setattr(adjoint_compiled, "inductor", as_traced)


def scores(run: Recorded, *, compile: bool = True, certificate: Any = "off") -> Scores:
    runner = InfluenceRunner(accelerator="cpu", certificate=certificate, progress=False, compile=compile)
    return runner.run(run.module, run.train, run.validation, log=run.log)


SUITABLE = (
    "sgd-decay-schedule",  # convolution
    "dampened",  # dropout
    "nesterov",  # BatchNorm, clipping
    "momentum-groups",  # tied weights
    "momentum-unused",
    "adam",
    "batchnorm-frozen",
    "batchnorm-2d",
)


@pytest.mark.parametrize("name", SUITABLE)
def test_same_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjoint_step, "CHECKS", 0)  # so that a wrong graph would not be noticed on the way
    case = BY_NAME[name]
    compiled = scores(record(case))
    assert compiled.certificate is not None
    assert runs["graph"] > 2, f"the test is degenerate: {compiled.certificate.notes}"
    assert relative_error(compiled.values, unrolled(case)) < case.tolerance


class Awkward(Classifier):
    """A step that python has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, CLASSES)

    def part(self, x: Tensor, batch_idx: int) -> float:
        return 1.5

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x.flatten(1)[:, :4]), y) * self.part(x, batch_idx)


class LooksAtBatchIndex(Awkward):
    def part(self, x: Tensor, batch_idx: int) -> float:
        return 1.0 + (batch_idx % 2)


class DrawsFromNumpy(Awkward):
    def part(self, x: Tensor, batch_idx: int) -> float:
        return 1.0 + 0 * np.random.rand()


class LooksAtValues(Awkward):
    def part(self, x: Tensor, batch_idx: int) -> float:
        return 2.0 if x.sum() > 1e9 else 1.0


def awkward(kind: type[Classifier], monkeypatch: pytest.MonkeyPatch) -> Recorded:
    def twin(*arguments: Any) -> Any:
        raise AssertionError("there is no such function")

    monkeypatch.setitem(MODELS, "awkward", Model(kind, twin, MODELS["mlp"].inputs))
    return record(Case(name="awkward", model="awkward", options={"lr": 0.5}))


def notes(compiled: Scores) -> str:
    assert compiled.certificate is not None
    return " ".join(compiled.certificate.notes)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(LooksAtBatchIndex, "looks at batch_idx"), (DrawsFromNumpy, "draws from numpy"), (LooksAtValues, "eager kernel")],
)
def test_steps_that_python_has_a_part_in_are_not_compiled(
    kind: type[Classifier], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = awkward(kind, monkeypatch)
    compiled = scores(run)
    assert why in notes(compiled)
    assert runs["graph"] == 0
    assert torch.equal(compiled.values, scores(run, compile=False).values)


def test_an_ordinary_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run = awkward(Awkward, monkeypatch)
    compiled = scores(run)
    assert runs["graph"] > 2
    assert not notes(compiled)
    assert relative_error(compiled.values, scores(run, compile=False).values) < 1e-12


def test_the_epoch_is_hidden_while_a_graph_is_traced() -> None:
    stand_in = TrainerStandIn()
    with stand_in.timeless(), pytest.raises(UnsupportedRunError, match="current_epoch"):
        _ = stand_in.current_epoch
    assert stand_in.current_epoch == 0


def compiled_by(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjoint_compiled, "inductor", compiler)


def test_a_compiler_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("g++")

    compiled_by(none, monkeypatch)
    run = awkward(Awkward, monkeypatch)
    compiled = scores(run)
    assert "FileNotFoundError: g++" in notes(compiled)
    assert torch.equal(compiled.values, scores(run, compile=False).values)


def wrong_from(call: int, part: tuple[str, int]) -> Any:
    """A compiler whose result is wrong in one output from a certain call on."""

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        half = ("first", "graph")[runs["halves"] % 2]
        right = as_traced(graph, inputs)

        def function(*tensors: Tensor) -> list[Tensor]:
            results = list(right(*tensors))
            if half == part[0] and runs[half] >= call:
                results[part[1]] = results[part[1]] * 1.5
            return results

        return function

    return compiler


LOSS, WEIGHT, BIAS = (("first", place) for place in range(3))
SLOPES, HESSIAN = (("graph", place) for place in range(2))


@pytest.mark.parametrize("part", [SLOPES, HESSIAN])
def test_a_graph_that_is_wrong_is_found_at_once(part: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_by(wrong_from(1, part), monkeypatch)
    run = awkward(Awkward, monkeypatch)
    compiled = scores(run)
    assert "differs by" in notes(compiled)
    assert runs["graph"] == 1
    assert torch.equal(compiled.values, scores(run, compile=False).values)


def test_a_graph_whose_steps_lead_elsewhere_is_found_later(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_by(wrong_from(adjoint_step.CHECKS + 1, WEIGHT), monkeypatch)
    run = awkward(Awkward, monkeypatch)
    eager = scores(run, compile=False, certificate="fast")
    compiled = scores(run, certificate="fast")
    assert "leads elsewhere than recorded" in notes(compiled)
    assert relative_error(compiled.values, eager.values) < 1e-12
    assert compiled.certificate.step_replay == eager.certificate.step_replay


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_by_inductor() -> None:
    run = record(BY_NAME["nesterov"])
    compiled = scores(run)
    assert not notes(compiled)
    assert relative_error(compiled.values, scores(run, compile=False).values) < 1e-10
