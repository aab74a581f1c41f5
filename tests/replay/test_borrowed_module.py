"""A borrowed module is given back exactly as it was, errors included."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_sgdinf import InfluenceRunner, random_state
from lightning_sgdinf.errors import NonFiniteError, UnsupportedRunError
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Draw, Header, MicroBatch, ParamGroup, Step
from lightning_sgdinf.replay.borrowed_module import borrowed
from lightning_sgdinf.replay.stand_in import TrainerStandIn
from lightning_sgdinf.state import ModelState


class Busy(pl.LightningModule):
    """Logs, keeps metrics and outputs, has frozen parts, parts in eval mode, and gradients left over from training."""

    seen: ClassVar[list[int]] = []  # of no instance: what an instance keeps is put back

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2))
        self.head = nn.Linear(5, 3)
        self.frozen = nn.Linear(5, 5)
        self.accuracy = MulticlassAccuracy(3)
        self.others = MetricCollection([MulticlassF1Score(3)])
        self.outputs: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {}
        self.count = 0
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + self.frozen(torch.ones(5)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.others.update(logits, y)
        self.log("loss", loss)
        self.log_dict({"accuracy": self.accuracy})
        self.seen.append(self.trainer.global_step)
        self.outputs.append(loss)
        self.by_name["latest"], self.made_in_a_step = loss, True
        self.count += 1
        return loss * float("nan") if self.broken else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)


class Prepared:
    """A module in an odd state, and a short record that fits it."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.module = Busy()
        self.module.frozen.requires_grad_(False)
        self.data = TensorDataset(torch.randn(9, 4), torch.randint(0, 3, (9,)))
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        names = tuple(trained)
        header = Header(
            run_id="busy",
            created="2026-01-01",
            model="Busy",
            optimizer="torch.optim.sgd.SGD",
            parameters=tuple((n, tuple(p.shape), "float32") for n, p in trained.items()),
            datasets=(("TensorDataset", 9),),
        )
        state = ModelState(params=trained, buffers=dict(self.module.named_buffers())).clone()
        rng = random_state.capture()
        steps = [
            Step(
                index=t,
                epoch=0,
                global_step=10 + t,
                micro_batches=(
                    MicroBatch(batch_idx=t, draws=(Draw(example_ids=np.arange(3) + 3 * t),), stepped_with=rng),
                ),
                groups=(ParamGroup(params=names, options={"lr": 0.1}),),
            )
            for t in range(3)
        ]
        self.log = MemoryLog(header=header, steps=steps, states=dict.fromkeys(range(4), state))
        self.leave_marks()

    def leave_marks(self) -> None:
        for number, parameter in enumerate(self.module.parameters()):
            parameter.grad = torch.full_like(parameter, number) if number % 2 else None
        self.module.train()
        self.module.body[1].eval()
        self.module.accuracy.update(torch.eye(3), torch.arange(3))

    def run(self, **more: Any) -> Any:
        runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, **more)
        loader = DataLoader(self.data, batch_size=3)
        return runner.run(self.module, loader, loader, log=self.log)


def fingerprint(module: Busy) -> dict[str, Any]:
    """Everything about a module and the generators, by identity where objects must stay the same."""
    marks: dict[str, Any] = {}
    for name, p in module.named_parameters():
        marks[f"{name}"] = (id(p), p.data_ptr(), p.dtype, p.requires_grad, p.detach().clone())
        marks[f"{name} grad"] = None if p.grad is None else (id(p.grad), p.grad.clone())
    for name, b in module.named_buffers():
        marks[name] = (id(b), b.data_ptr(), b.clone())
    for name, part in module.named_modules():
        marks[f"{name} attributes"] = {k: id(v) for k, v in part.__dict__.items()}
        marks[f"{name} hooks"] = len(part._forward_hooks)
        marks[f"{name} log"] = getattr(getattr(part, "log", None), "__func__", None)
    marks["kept"] = (list(module.outputs), dict(module.by_name))
    marks["metric"] = {k: v.clone() for k, v in module.accuracy.metric_state.items()}
    marks["random"] = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    return marks


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where} {key}")
    elif isinstance(a, tuple) and any(isinstance(x, Tensor) for x in a):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, where)
    else:
        assert a == b, where


@pytest.mark.parametrize("more", [{}, {"precision": "64-true"}], ids=["as recorded", "float64"])
def test_nothing_is_changed_by_a_walk(more: dict[str, Any]) -> None:
    at = Prepared()
    before = fingerprint(at.module)
    scores = at.run(**more)
    assert_same(before, fingerprint(at.module))
    assert scores.values.abs().max() > 0
    assert {10, 11, 12} <= set(at.module.seen), "training_step did not see the recorded steps"
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        at.module.trainer


@pytest.mark.parametrize("more", [{}, {"precision": "64-true"}], ids=["as recorded", "float64"])
def test_nothing_is_changed_by_an_error(more: dict[str, Any]) -> None:
    at = Prepared()
    at.module.broken = True
    before = fingerprint(at.module)
    with pytest.raises(NonFiniteError):
        at.run(**more)
    assert_same(before, fingerprint(at.module))


def test_lent_tensors_are_copies_and_only_trained_ones_want_gradients() -> None:
    at = Prepared()
    before = {n: p.detach().clone() for n, p in at.module.named_parameters()}
    stand_in = TrainerStandIn()
    with borrowed(
        at.module,
        trained=["head.weight"],
        device=torch.device("cpu"),
        dtype=torch.float64,
        stand_in=stand_in,
    ) as lent:
        assert list(lent) == ["head.weight"]
        assert [n for n, p in at.module.named_parameters() if p.requires_grad] == ["head.weight"]
        assert all(p.dtype == torch.float64 and p.grad is None for p in at.module.parameters())
        assert at.module.trainer is stand_in
        with torch.no_grad():
            for p in at.module.parameters():
                p.zero_()
        at.module.head.weight.sum().backward()
    assert all(torch.equal(p, before[n]) for n, p in at.module.named_parameters())


def test_what_the_record_does_not_know_of_the_trainer_is_refused_by_name() -> None:
    stand_in = TrainerStandIn(max_epochs=3)
    assert stand_in.max_epochs == 3
    with pytest.raises(UnsupportedRunError, match=r"reads trainer\.train_dataloader, .*puts on self is recorded"):
        stand_in.train_dataloader
    assert not hasattr(stand_in, "__wrapped__")


def test_a_step_that_reads_the_trainer_is_refused() -> None:
    at = Prepared()

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1]) * (1 + self.trainer.estimated_stepping_batches)

    at.module.__class__ = type("Reader", (Busy,), {"training_step": training_step})
    with pytest.raises(UnsupportedRunError, match=r"trainer\.estimated_stepping_batches"):
        at.run()
