"""A step taken apart into graphs: the same numbers to the last bit, with fewer operations."""

from __future__ import annotations

import random
from collections import Counter, UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.adjoint import compiled as adjoint_compiled
from lightning_sgdinf.adjoint import step as adjoint_step
from lightning_sgdinf.adjoint.step_graph import StepGraph, uncompiled
from lightning_sgdinf.scores import Scores
from tests.adjoint.cases import BY_NAME, record
from tests.adjoint.test_compiled import SUITABLE

COUNT = 5


def taken_apart(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], early: int
) -> tuple[Callable[..., list[Tensor]], list[torch.fx.GraphModule]]:
    """The two halves of a function of (x, weights, push), one after the other; and their graphs."""
    halves: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, given: Sequence[Tensor]) -> Any:
        halves.append(graph)
        return uncompiled(graph, given)

    traced = make_fx(function, tracing_mode="fake")(*inputs)
    graph = StepGraph.of(traced, inputs, compiler, ones=1, late=2, early=early)

    def run(x: Tensor, push: Tensor) -> list[Tensor]:
        first = list(graph.first(x))
        return [*first[:early], *graph.second(*first[early:], push)]

    return run, halves


def operations(graph: torch.fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(COUNT, 3), torch.ones(COUNT), torch.randn(2, 3)]


def weighted(x: Tensor, weights: Tensor, push: Tensor) -> list[Tensor]:
    here = torch.arange(COUNT).clamp(0)
    rows = torch.where(here == -2, torch.ones_like(weights), weights[here])
    scaled = (x.tanh().exp() * rows.unsqueeze(1)).detach()
    twice = x.tanh().exp() + torch.zeros_like(x)
    slopes = torch.zeros(COUNT).index_put([here], (scaled @ push.T).sum(1), accumulate=True)
    return [scaled.sum(), slopes, twice.t().t() @ push.T]


def test_what_changes_no_number_is_left_out() -> None:
    given = inputs()
    run, (first, second) = taken_apart(weighted, given, early=1)
    expected = weighted(*given)
    for a, b in zip(run(given[0], given[2]), expected, strict=True):
        assert torch.equal(a, b)
    assert operations(first) == {"aten.tanh.default": 1, "aten.exp.default": 1, "aten.sum.default": 1}
    assert not {"aten.index_put.default", "aten.arange.default"} & set(operations(second))


def test_other_inputs_give_other_numbers() -> None:
    run, _ = taken_apart(weighted, inputs(), early=1)
    torch.manual_seed(1)
    x, push = torch.randn(COUNT, 3), torch.randn(2, 3)
    for a, b in zip(run(x, push), weighted(x, torch.ones(COUNT), push), strict=True):
        assert torch.equal(a, b)


def test_random_numbers_are_drawn_anew_and_each_once() -> None:
    def noisy(x: Tensor, weights: Tensor, push: Tensor) -> list[Tensor]:
        return [(torch.rand(3) + torch.rand(3) + x * weights.unsqueeze(1)).sum(0), push * torch.rand(3)]

    given = inputs()
    run, _ = taken_apart(noisy, given, early=1)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = noisy(*given)
        torch.manual_seed(seed)
        for a, b in zip(run(given[0], given[2]), expected, strict=True):
            assert torch.equal(a, b)


def test_what_is_written_in_place_is_written_once_and_in_order() -> None:
    def writing(x: Tensor, weights: Tensor, push: Tensor) -> list[Tensor]:
        before = x * 1.0
        x.add_(weights.unsqueeze(1))
        total = torch.zeros(3)
        total.add_(x.sum(0))
        return [before.sum(), total, total * push]

    given = inputs()
    run, _ = taken_apart(writing, [t.clone() for t in given], early=2)
    x, twin = given[0].clone(), given[0].clone()
    for _ in range(2):
        for a, b in zip(run(x, given[2]), writing(twin, given[1], given[2]), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(x, twin)


def test_constants_are_not_shared_with_results() -> None:
    def constant(x: Tensor, weights: Tensor, push: Tensor) -> list[Tensor]:
        return [x.sum(), torch.full((3,), 2.0), push + weights.sum()]

    given = inputs()
    run, _ = taken_apart(constant, given, early=2)
    run(given[0], given[2])[1].zero_()
    assert run(given[0], given[2])[1].tolist() == [2.0] * 3


@pytest.mark.parametrize("name", SUITABLE)
def test_scores_are_the_eager_ones_to_the_last_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(BY_NAME[name])
    monkeypatch.setattr(adjoint_compiled, "WORTH_STEPS", 1)
    steps = Counter[str]()
    begin = adjoint_compiled.CompiledSteps.begin

    def counted(*args: Any) -> Any:
        steps["traced"] += 1
        return begin(*args)

    monkeypatch.setattr(adjoint_compiled.CompiledSteps, "begin", counted)

    def scores(compile: bool | None) -> Scores:
        runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, compile=compile, per_epoch=True)
        return runner.run(run.module, run.train, run.validation, log=run.log)

    eager = scores(False)
    assert not steps
    traced = scores(None)
    assert torch.equal(traced.values, eager.values)
    assert torch.equal(traced.per_epoch, eager.per_epoch)
    assert traced.certificate == eager.certificate
    assert steps["traced"] > 2, "the test is degenerate"


class Record(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Sample:
    x: Tensor
    y: Tensor


def as_lists(items: list[Any]) -> list[Tensor]:
    return [torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])]


FORMS: dict[str, tuple[Callable[[list[Any]], Any], Callable[[Any], tuple[Tensor, Tensor]], bool]] = {
    "list": (as_lists, tuple, True),
    "dict": (lambda items: dict(zip("xy", as_lists(items), strict=True)), lambda b: (b["x"], b["y"]), True),
    "namedtuple": (lambda items: Record(*as_lists(items)), lambda b: (b.x, b.y), True),
    "nested, with a word": (lambda items: {"w": "a", "b": as_lists(items)}, lambda b: tuple(b["b"]), True),
    "another word each time": (
        lambda items: (*as_lists(items), str(items[0][0])),
        lambda b: (b[0], b[1]),
        False,
    ),
    "dataclass": (lambda items: Sample(*as_lists(items)), lambda b: (b.x, b.y), False),
    "UserDict": (lambda items: UserDict(zip("xy", as_lists(items), strict=True)), lambda b: (b["x"], b["y"]), False),
    "with an array": (lambda items: (*as_lists(items), np.zeros(len(items))), lambda b: (b[0], b[1]), False),
    "with numbers of numpy": (lambda items: (*as_lists(items), np.float64(2)), lambda b: (b[0], b[1]), False),
    "sparse": (
        lambda items: (as_lists(items)[0].to_sparse(), as_lists(items)[1]),
        lambda b: (b[0].to_dense(), b[1]),
        False,
    ),
}


class OfAForm(lightning.LightningModule):
    def __init__(self, read: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.read, self.layer = read, torch.nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.read(batch)
        return torch.nn.functional.cross_entropy(self.layer(x).tanh(), y)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.5)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("name", FORMS)
def test_batches_of_any_form_are_traced_or_left_to_the_eager_kernel(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate, read, is_traced = FORMS[name]
    traced, eager, steps = both_ways(OfAForm(read), collate, tmp_path, monkeypatch)
    assert torch.equal(traced.values, eager.values)
    assert (steps > 2) is is_traced


def both_ways(
    module: lightning.LightningModule, collate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Scores, Scores, int]:
    """Scores of a fit by the traced kernel and by the eager one, and the number of steps that were traced ones."""
    monkeypatch.setattr(adjoint_compiled, "WORTH_STEPS", 1)
    torch.manual_seed(0)
    items = [(x, int(x.sum() > 0)) for x in torch.randn(12, 3)]
    loader = DataLoader(items, batch_size=3, collate_fn=collate, shuffle=True)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TrajectoryRecorder(tmp_path / "r.tlog")],
    )  # fmt: skip
    trainer.fit(module, loader, loader)

    def scores(compile: bool | None) -> Scores:
        runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, compile=compile)
        return runner.run(module, loader, loader, log=tmp_path / "r.tlog")

    traced = Counter[str]()
    begin = adjoint_compiled.CompiledSteps.begin

    def counted(*args: Any) -> Any:
        traced["steps"] += 1
        return begin(*args)

    monkeypatch.setattr(adjoint_compiled.CompiledSteps, "begin", counted)
    return scores(None), scores(False), traced["steps"]


class ReadsPython(OfAForm):
    """A step with a number that changes from step to step, and not by its inputs."""

    number: Callable[[Any, int], float]

    def __init__(self) -> None:
        super().__init__(tuple)
        self.weight, self.seen = 1.0, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * type(self).number(self, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.5)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


class SetByAHook(ReadsPython):
    number = staticmethod(lambda self, k: self.weight)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.weight = 1.0 / (1 + self.trainer.global_step)


class Counts(ReadsPython):
    @staticmethod
    def number(self: Any, k: int) -> float:
        self.seen += 1
        return 1.0 / self.seen


NUMBERS: dict[str, type[ReadsPython]] = {
    "set by a hook": SetByAHook,
    "counted in the step": Counts,
    "learning rate": type(
        "Rate", (ReadsPython,), {"number": staticmethod(lambda m, k: m.optimizers().param_groups[0]["lr"])}
    ),
    "scheduler": type(
        "Scheduler", (ReadsPython,), {"number": staticmethod(lambda m, k: m.lr_schedulers().get_last_lr()[0])}
    ),
    "epoch": type("Epoch", (ReadsPython,), {"number": staticmethod(lambda m, k: 1.0 + m.current_epoch)}),
    "last batch": type(
        "LastBatch", (ReadsPython,), {"number": staticmethod(lambda m, k: 1.0 + m.trainer.is_last_batch)}
    ),
    "progress": type(
        "Progress",
        (ReadsPython,),
        {"number": staticmethod(lambda m, k: 1.0 + m.trainer.fit_loop.epoch_loop.batch_progress.current.ready)},
    ),
    "numpy": type("Numpy", (ReadsPython,), {"number": staticmethod(lambda m, k: float(np.random.rand()))}),
    "random": type("Random", (ReadsPython,), {"number": staticmethod(lambda m, k: random.random())}),
}


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_python_are_not_frozen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjoint_step, "CHECKS", 0)  # so that a comparison does not hide it
    traced, eager, _ = both_ways(NUMBERS[name](), None, tmp_path, monkeypatch)
    assert torch.equal(traced.values, eager.values)
