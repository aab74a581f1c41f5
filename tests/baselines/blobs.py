"""Three clouds of points, some with wrong labels and some far off, and a record of a plain training loop on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Draw, Header, MicroBatch, ParamGroup, Step
from lightning_sgdinf.state import ModelState

N, DIMENSIONS, CLASSES = 60, 6, 3
WRONG, ODD = (4, 17, 38), (9, 50)
LR, EPOCHS, BATCH = 0.3, 25, 20


class Net(nn.Module):
    """Two layers, as a LightningModule would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(DIMENSIONS, 8), nn.Tanh())
        self.head = nn.Linear(8, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)


def make(seed: int = 3) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


@cache
def points() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``[N + 30, 6]``, given and true labels; the last 30 are for validation."""
    draw = np.random.default_rng(8)
    true = torch.arange(N + 30) % CLASSES
    x = torch.from_numpy(draw.standard_normal((N + 30, DIMENSIONS))) * 0.6
    x[torch.arange(N + 30), true] += 3.0
    for sign, j in enumerate(ODD):
        x[j, 3:] += 8.0 - 16.0 * sign
    given = true.clone()
    given[list(WRONG)] = (given[list(WRONG)] + 1) % CLASSES
    return x, given, true


def training_set() -> TensorDataset:
    return TensorDataset(points()[0][:N], points()[1][:N])


def validation_set() -> TensorDataset:
    return TensorDataset(points()[0][N:], points()[1][N:])


def batches() -> Iterable[tuple[int, np.ndarray]]:
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(N)
        for start in range(0, N, BATCH):
            yield epoch, order[start : start + BATCH]


def descent(keep: Tensor | None = None) -> Iterator[Net]:
    """Plain gradient descent by hand: the model at every state; a batch's losses are divided by what is left of it."""
    model = make()
    yield model
    x, y, _ = points()
    for _, ids in batches():
        chosen = torch.from_numpy(ids)
        if keep is not None:
            chosen = chosen[keep[chosen]]
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter -= LR * grad
        yield model


def train(keep: Tensor | None = None) -> Net:
    """The model at the end of the descent."""
    *_, model = descent(keep)
    return model


def state(model: nn.Module) -> ModelState:
    return ModelState(params=dict(model.named_parameters())).clone()


@cache
def trained() -> Net:
    return train()


def log(final: ModelState | None = None, *, first: bool = True) -> MemoryLog:
    model = make()
    names = tuple(n for n, _ in model.named_parameters())
    header = Header(
        run_id="blobs",
        created="2026-01-01T00:00:00+00:00",
        model="Net",
        optimizer="torch.optim.sgd.SGD",
        parameters=tuple((n, tuple(p.shape), "float64") for n, p in model.named_parameters()),
        precision="64-true",
        datasets=(("TensorDataset", N),),
    )
    steps = [
        Step(
            index=t,
            epoch=epoch,
            global_step=t,
            micro_batches=(MicroBatch(batch_idx=0, draws=(Draw(example_ids=ids),)),),
            groups=(ParamGroup(params=names, options={"lr": LR}),),
        )
        for t, (epoch, ids) in enumerate(batches())
    ]
    states = {len(steps): state(trained()) if final is None else final}
    if first:
        states[0] = state(model)
    return MemoryLog(header=header, steps=steps, states=states)


def rank(baseline: Any, *, dataset: Any = None, record: MemoryLog | None = None, validate: bool = True) -> Scores:
    """Rank the examples as a user does."""
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    loader = DataLoader(training_set() if dataset is None else dataset, batch_size=BATCH)
    validation = DataLoader(validation_set(), batch_size=7) if validate else None
    return runner.run(make(), loader, validation, log=record or log(), estimator=baseline)


def hidden(x: Tensor) -> np.ndarray:
    """Compute the input of the last linear layer by the formula."""
    first = trained().body[0]
    return torch.tanh(x @ first.weight.T + first.bias).detach().numpy()


def first_ids(scores: Scores, count: int) -> set[int]:
    return set(scores.order()[:count].tolist())


class Shaking(TensorDataset):
    """Examples that move at random, and say so."""

    def __init__(self, *tensors: Tensor, size: float = 5.0) -> None:
        super().__init__(*tensors)
        self.size = size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + self.size * torch.randn(x.shape, dtype=x.dtype), y

    def unaugmented(self) -> TensorDataset:
        return TensorDataset(*self.tensors)

    def augmenting(self, other: TensorDataset) -> Shaking:
        return Shaking(*other.tensors, size=self.size)
