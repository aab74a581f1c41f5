"""A short recorded run to try things on, made by a plain training loop without Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.log import Draw, Header, MemoryLog, MicroBatch, ParamGroup, Step
from lightning_sgdinf.state import ModelState

EXAMPLES, NEVER_DRAWN, EPOCHS, BATCH = 13, 12, 3, 4


class SmallNet(nn.Sequential):
    """Two layers, float64, with the mean cross entropy as ``training_step``."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        self.double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross entropy."""
        del batch_idx
        x, y = batch
        return F.cross_entropy(self(x), y)


@dataclass(frozen=True, slots=True)
class SmallRun:
    """Nine steps of momentum SGD on 12 of 13 examples.

    Attributes:
        model: As it was before training; replay does not mind.
        train: Training loader, ``N = 13``; example 12 was never drawn.
        validation: Validation loader of 10 examples.
        log: The record.
    """

    model: SmallNet
    train: DataLoader[Any]
    validation: DataLoader[Any]
    log: MemoryLog


def small_run(seed: int = 0) -> SmallRun:
    """Train and record.

    Args:
        seed: Of data, initial parameters and order; the global generators are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = [
        TensorDataset(
            torch.randn(count, 5, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (count,), generator=generator),
        )
        for count in (EXAMPLES, 10)
    ]
    with torch.random.fork_rng():  # layers draw their first parameters from the global generator
        model = SmallNet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 2)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    states, steps = {0: _state(model, optimizer)}, []
    for epoch in range(EPOCHS):
        for ids in torch.randperm(NEVER_DRAWN, generator=generator).split(BATCH):
            optimizer.zero_grad()
            model.training_step((sets[0].tensors[0][ids], sets[0].tensors[1][ids]), 0).backward()
            optimizer.step()
            steps.append(_step(len(steps), epoch, ids, model, optimizer))
            states[len(steps)] = _state(model, optimizer)
    header = Header(
        run_id=f"small run {seed}",
        created="2026-01-01T00:00:00+00:00",
        model=type(model).__qualname__,
        optimizer="torch.optim.sgd.SGD",
        parameters=tuple((n, tuple(p.shape), dtype_name(p.dtype)) for n, p in model.named_parameters()),
        precision="64-true",
        datasets=(("torch.utils.data.dataset.TensorDataset", EXAMPLES),),
    )
    model.zero_grad()
    model.load_state_dict(start)
    train, validation = (DataLoader(s, batch_size=BATCH) for s in sets)
    return SmallRun(model, train, validation, MemoryLog(header=header, steps=steps, states=states))


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> ModelState:
    named = dict(model.named_parameters())
    memory = {n: dict(optimizer.state[p]) for n, p in named.items() if p in optimizer.state}
    return ModelState(params=named, optimizer=memory).clone()


def _step(index: int, epoch: int, ids: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return Step(
        index=index,
        epoch=epoch,
        global_step=index,
        micro_batches=(MicroBatch(batch_idx=0, draws=(Draw(example_ids=ids.numpy()),)),),
        groups=(ParamGroup(params=tuple(n for n, _ in model.named_parameters()), options=options),),
    )
