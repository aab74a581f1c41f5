"""A short recorded run to try things on, made by a plain training loop without Lightning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import random_state
from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.log import Draw, Header, MemoryLog, MicroBatch, ParamGroup, Step
from lightning_sgdinf.state import ModelState

EXAMPLES, NEVER_DRAWN, EPOCHS, BATCH = 13, 12, 3, 4


class SmallNet(nn.Sequential):
    """Two layers, float64, with the mean cross entropy as ``training_step``."""

    def __init__(self, *hidden: nn.Module) -> None:
        super().__init__(nn.Linear(5, 4), *(hidden or (nn.Tanh(),)), nn.Linear(4, 3))
        self.double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross entropy."""
        del batch_idx
        x, y = batch
        return F.cross_entropy(self(x), y)


class NormalisedNet(SmallNet):
    """A net with all that a training step can have: buffers, modes, random numbers, and a parameter that is frozen."""

    def __init__(self) -> None:
        normalise = nn.BatchNorm1d(4)
        normalise.weight.requires_grad_(False)
        super().__init__(normalise, nn.Tanh(), nn.Dropout(0.2))


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


def small_run(seed: int = 0, make: Callable[[], SmallNet] = SmallNet, *, learnable: bool = False) -> SmallRun:
    """Train and record.

    Args:
        seed: Of data, initial parameters and order; the global generators are left alone.
        make: Makes the model; its trained parameters and its frozen ones get values of the seed.
        learnable: Examples ``0, 3, 6, ...``, those after them and those before them are classes that differ in their
            inputs, in place of random labels.
    """
    with random_state.seeded(seed):
        return _recorded(make(), torch.Generator().manual_seed(seed), seed, learnable)


def _examples(count: int, generator: torch.Generator, learnable: bool) -> TensorDataset:
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=generator)
    if not learnable:
        return TensorDataset(x, y)
    y = torch.arange(count) % 3
    return TensorDataset(x / 2 + 3 * F.one_hot(y, 5), y)


def _recorded(model: SmallNet, generator: torch.Generator, seed: int, learnable: bool) -> SmallRun:
    sets = [_examples(count, generator, learnable) for count in (EXAMPLES, 10)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 2)
    start = {n: v.clone() for n, v in model.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.2, momentum=0.8)
    draws = any(isinstance(part, nn.Dropout) for part in model.modules())
    states, steps = {0: _state(model, optimizer)}, []
    for epoch in range(EPOCHS):
        for ids in torch.randperm(NEVER_DRAWN, generator=generator).split(BATCH):
            optimizer.zero_grad()
            random = {"torch": random_state.torch_state()} if draws else {}
            model.training_step((sets[0].tensors[0][ids], sets[0].tensors[1][ids]), 0).backward()
            optimizer.step()
            micro = MicroBatch(batch_idx=0, draws=(Draw(example_ids=ids.numpy()),), stepped_with=random)
            steps.append(_step(len(steps), epoch, micro, model, optimizer))
            states[len(steps)] = _state(model, optimizer)
    header = Header(
        run_id=f"small run {seed}",
        created="2026-01-01T00:00:00+00:00",
        model=type(model).__qualname__,
        optimizer="torch.optim.sgd.SGD",
        parameters=tuple((n, tuple(p.shape), dtype_name(p.dtype)) for n, p in _trained(model).items()),
        precision="64-true",
        datasets=(("torch.utils.data.dataset.TensorDataset", EXAMPLES),),
    )
    model.zero_grad()
    model.load_state_dict(start)
    train, validation = (DataLoader(s, batch_size=BATCH) for s in sets)
    return SmallRun(model, train, validation, MemoryLog(header=header, steps=steps, states=states))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> ModelState:
    named = _trained(model)
    memory = {n: dict(optimizer.state[p]) for n, p in named.items() if p in optimizer.state}
    return ModelState(params=named, buffers=dict(model.named_buffers()), optimizer=memory).clone()


def _step(index: int, epoch: int, micro: MicroBatch, model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return Step(
        index=index,
        epoch=epoch,
        global_step=index,
        micro_batches=(micro,),
        groups=(ParamGroup(params=tuple(_trained(model)), options=options),),
    )
