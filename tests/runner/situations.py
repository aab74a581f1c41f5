"""A training step beside its loss written out by hand, and its training under the recorder and as a plain loop.

A situation is a data set, a network, the loss as people write it, and what each example adds to that loss, from
formulas that share no code with it. `Run` trains one under the recorder and as a plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.truth import Truth
from lightning_sgdinf.updates import CounterfactualReplay, Updated

N, T, D, C = 12, 4, 5, 3
VALIDATION = 10
LR, MOMENTUM = 0.2, 0.6
Params = Mapping[str, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, C, shape, generator=torch.Generator().manual_seed(seed))


def apply_linear(p: Params, x: Tensor, name: str = "net") -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def likelihoods(z: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihoods of classes, ``[...]``."""
    return z.exp().sum(-1).log() - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)


class Situation:
    """One example, one row: what the others change.

    Attributes:
        size: Examples per batch.
        epochs: How often the data are gone through.
        shuffle: Draw each epoch in another order.
        collate: Of the loader.
    """

    size: ClassVar[int] = 4
    epochs: ClassVar[int] = 3
    shuffle: ClassVar[bool] = True
    collate: ClassVar[Callable[[list[Any]], Any] | None] = None

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), labels(N)

    def dataset(self) -> Dataset[Any]:
        return TensorDataset(*self.columns(), torch.arange(N))

    def net(self) -> nn.Module:
        return nn.Linear(D, C)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        """The loss of a training step."""
        x, y = batch
        return F.cross_entropy(net(x), y)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        """What each example adds to it, ``[B]``."""
        x, y = (c[ids] for c in self.columns())
        return likelihoods(apply_linear(p, x), y) / len(ids)

    def rest(self, p: Params) -> Tensor | float:
        """What no example adds."""
        return 0.0

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        """The loss with a weight for each example."""
        return (weights * self.summands(p, ids, t)).sum() + self.rest(p)

    def validation(self) -> tuple[Tensor, Tensor]:
        return normal(VALIDATION, D, seed=1), labels(VALIDATION, seed=1)

    def query_step(self, net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def query(self, p: Params) -> Tensor:
        x, y = self.validation()
        return likelihoods(apply_linear(p, x), y).mean()


class Module(pl.LightningModule):
    """A situation's training; notes the ids and the random state of each step while ``journal`` is a list."""

    def __init__(self, situation: Situation) -> None:
        super().__init__()
        self.situation = situation
        self.net = situation.net()
        self.journal: list[tuple[Tensor, Tensor]] | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *columns, ids = batch
        if self.journal is not None:
            self.journal.append((ids.clone(), torch.get_rng_state()))
        per_epoch = -(-N // self.situation.size)
        return self.situation.loss(self.net, columns, self.current_epoch * per_epoch + batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.situation.query_step(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR, momentum=MOMENTUM)


class Run:
    """A recorded training of a situation."""

    def __init__(self, situation: Situation, folder: Path) -> None:
        pl.seed_everything(3, verbose=False)
        self.situation = situation
        self.module = Module(situation)
        self.train = DataLoader(
            situation.dataset(),
            batch_size=situation.size,
            shuffle=situation.shuffle,
            collate_fn=type(situation).collate,
        )
        self.held_out = DataLoader(TensorDataset(*situation.validation()), batch_size=VALIDATION)
        self.path = folder / "run.tlog"
        self.before = {n: p.detach().double() for n, p in self.module.named_parameters()}
        trainer = pl.Trainer(
            max_epochs=situation.epochs,
            precision="64-true",
            accelerator="cpu",
            callbacks=[TrajectoryRecorder(self.path)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        self.module.journal = []
        trainer.fit(self.module, self.train, self.held_out)
        self.journal, self.module.journal = self.module.journal, None

    def scores(self, **settings: Any) -> Scores:
        runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
        return runner.run(self.module, self.train, self.held_out, log=self.path)

    def counterfactuals(self, **settings: Any) -> Truth:
        runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
        return runner.counterfactuals(self.module, self.train, self.held_out, log=self.path)

    def updated(self, **settings: Any) -> Updated:
        """Take the run again without two of its examples."""
        runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
        how: dict[str, Any] = {"update": CounterfactualReplay(), "selection": Selection(drop=(1, 7))}
        return runner.update(self.module, self.train, self.held_out, log=self.path, **how)

    def take(self, weights: Tensor, *, graph: bool) -> Tensor:
        """Train as a plain loop with example weights; return the query at the end."""
        p = {n: v.clone().requires_grad_() for n, v in self.before.items()}
        velocity = {n: torch.zeros_like(v) for n, v in p.items()}
        with torch.random.fork_rng():
            for t, (ids, random) in enumerate(self.journal):
                torch.set_rng_state(random)
                loss = self.situation.weighted(p, ids, t, weights[ids])
                grads = torch.autograd.grad(loss, list(p.values()), create_graph=graph)
                velocity = {n: MOMENTUM * velocity[n] + g for n, g in zip(p, grads, strict=True)}
                p = {n: v - LR * velocity[n] for n, v in p.items()}
                if not graph:
                    p = {n: v.detach().requires_grad_() for n, v in p.items()}
        return self.situation.query(p)

    def unrolled(self) -> Tensor:
        """The whole training differentiated in the weights, ``[N, 1]``."""
        weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
        return -torch.autograd.grad(self.take(weights, graph=True), weights)[0][:, None]

    def trained_again(self) -> Tensor:
        """Changes of the query without each example, ``[N, 1]``."""
        ones = torch.ones(N, dtype=torch.float64)
        base = self.take(ones, graph=False)
        without = [self.take(ones.index_fill(0, torch.tensor([j]), 0.0), graph=False) - base for j in range(N)]
        return torch.stack(without).detach()[:, None]
