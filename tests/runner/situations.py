"""Training steps whose rows are not one per example, each beside its loss written out by hand.

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
from lightning_sgdinf.truth import Truth

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

    def scores(self, certificate: Any = "fast") -> Scores:
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate=certificate)
        return runner.run(self.module, self.train, self.held_out, log=self.path)

    def counterfactuals(self) -> Truth:
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        return runner.counterfactuals(self.module, self.train, self.held_out, log=self.path)

    def take(self, weights: Tensor, *, graph: bool) -> Tensor:
        """Train as a plain loop with example weights; return the query at the end."""
        p = {n: v.clone().requires_grad_() for n, v in self.before.items()}
        velocity = {n: torch.zeros_like(v) for n, v in p.items()}
        with torch.random.fork_rng():
            for t, (ids, random) in enumerate(self.journal):
                torch.set_rng_state(random)
                loss = (weights[ids] * self.situation.summands(p, ids, t)).sum() + self.situation.rest(p)
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


# Several rows per example, as many of each or not ---------------------------------------------------------------------


class MaskedTokens(Situation):
    """Padded sequences of one to four tokens."""

    lengths = torch.tensor([1, 4, 2, 1, 3, 4, 4, 2, 1, 3, 2, 4])

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, T, D), labels(N, T), torch.arange(T) < self.lengths[:, None]

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, mask = batch
        return F.cross_entropy(net(x)[mask], y[mask])

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y, mask = (c[ids] for c in self.columns())
        return (likelihoods(apply_linear(p, x), y) * mask).sum(1) / mask.sum()


class EqualThenUnequal(MaskedTokens):
    """The first and the last batch look regular; those between are not."""

    lengths = torch.tensor([4, 4, 4, 4, 1, 4, 2, 1, 2, 2, 2, 2])
    shuffle = False


class MissingLabels(Situation):
    """Three tasks at once; labels are missing at random, of one example all of them."""

    def columns(self) -> tuple[Tensor, ...]:
        y = (normal(N, C, seed=2) > 0).double()
        y[normal(N, C, seed=3) < 0] = torch.nan
        y[3] = torch.nan
        return normal(N, D), y

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        there = ~y.isnan()
        return F.binary_cross_entropy_with_logits(net(x)[there], y[there])

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        z, there = apply_linear(p, x), ~y.isnan()
        return (torch.log1p(z.exp()) - z * y.nan_to_num(0.0)).mul(there).sum(1) / there.sum()


class IgnoredTokens(Situation):
    """Labels ``[N, T]``; tokens that are to be left out say -100, and so do all of some examples."""

    def columns(self) -> tuple[Tensor, ...]:
        y = labels(N, T)
        y[normal(N, T, seed=4) < -0.3] = -100
        y[::5] = -100
        return normal(N, T, D), y

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(x).transpose(1, 2), y)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        there = y >= 0
        return (likelihoods(apply_linear(p, x), y.clamp(min=0)) * there).sum(1) / there.sum()


class FirstIgnored(IgnoredTokens):
    """The first example of every batch has no label at all."""

    shuffle = False

    def columns(self) -> tuple[Tensor, ...]:
        x, y = super().columns()
        y[::4] = -100
        return x, y


class TimeFirst(Situation):
    """Sequences as ``[T, B]``, flattened."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, T, D), labels(N, T)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = (c.transpose(0, 1) for c in batch)
        return F.cross_entropy(net(x).flatten(0, 1), y.flatten())

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        return likelihoods(apply_linear(p, x), y).sum(1) / (T * len(ids))


class TimeFirstRegression(Situation):
    """An unflattened squared error on ``[T, B, C]``."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, T, D), normal(N, T, C, seed=5)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = (c.transpose(0, 1) for c in batch)
        return F.mse_loss(net(x), y)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        return (apply_linear(p, x) - y).square().sum((1, 2)) / (T * C * len(ids))


class TwoViews(Situation):
    """Two views of each example, one batch after the other."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), normal(N, D, seed=6), labels(N)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        a, b, y = batch
        return F.cross_entropy(net(torch.cat([a, b])), torch.cat([y, y]))

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        a, b, y = (c[ids] for c in self.columns())
        return sum(likelihoods(apply_linear(p, x), y) for x in (a, b)) / (2 * len(ids))


class RaggedRepeats(Situation):
    """Every example is repeated as often as it says."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), labels(N), torch.tensor([3, 1, 2, 1, 1, 2, 3, 3, 1, 2, 1, 2])

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, times = batch
        return F.cross_entropy(net(x.repeat_interleave(times, 0)), y.repeat_interleave(times))

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y, times = (c[ids] for c in self.columns())
        return likelihoods(apply_linear(p, x), y) * times / times.sum()


# Batches and calls ----------------------------------------------------------------------------------------------------


class Files(Dataset[Any]):
    """Some of them cannot be read."""

    unreadable = frozenset({0, 6, 7})

    def __init__(self, columns: tuple[Tensor, ...]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return None if i in self.unreadable else (*(c[i] for c in self.columns), i)


def leave_out_unreadable(examples: list[Any]) -> Any:
    return torch.utils.data.default_collate([e for e in examples if e is not None])


class Unreadable(Situation):
    """A collate function that leaves out what cannot be read."""

    collate = staticmethod(leave_out_unreadable)

    def dataset(self) -> Dataset[Any]:
        return Files(self.columns())


class UnreadableTokens(MaskedTokens):
    """The same, with tokens of unequal length."""

    collate = staticmethod(leave_out_unreadable)

    def dataset(self) -> Dataset[Any]:
        return Files(self.columns())


class OneByOne(Situation):
    """A loss of each example by itself, unbatched."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        return torch.stack([F.cross_entropy(net(x[i]), y[i]) for i in range(len(x))]).mean()


class SometimesTwo(Situation):
    """Every second batch has a loss more, called before the other."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), labels(N), normal(N, C, seed=7)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, target = batch
        z = net(x)
        more = F.mse_loss(z, target) if t % 2 else 0.0
        return more + F.cross_entropy(z, y)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y, target = (c[ids] for c in self.columns())
        z = apply_linear(p, x)
        return (likelihoods(z, y) + (t % 2) * (z - target).square().mean(1)) / len(ids)


class SometimesLabelled(SometimesTwo):
    """Two losses of the same name with rows of two kinds: of the second only half the batches have any."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, target = batch
        z = net(x)
        few = target[:, 0] > 0.3
        more = F.cross_entropy(2 * z[few], y[few], reduction="sum") if t % 2 else 0.0
        return more + F.cross_entropy(z, y)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y, target = (c[ids] for c in self.columns())
        z = apply_linear(p, x)
        return likelihoods(z, y) / len(ids) + (t % 2) * (target[:, 0] > 0.3) * likelihoods(2 * z, y)


class BatchesOfOne(MaskedTokens):
    """Steps of one example each."""

    size, epochs = 1, 1


class ZeroHead(Situation):
    """A head that starts at zero gives all examples the same loss at first."""

    def net(self) -> nn.Module:
        head = nn.Linear(4, C)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), head)

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, T, D), labels(N, T)

    loss = TimeFirst.loss

    def apply(self, p: Params, x: Tensor) -> Tensor:
        return apply_linear(p, apply_linear(p, x, "net.0").tanh(), "net.2")

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        return likelihoods(self.apply(p, x), y).sum(1) / (T * len(ids))

    def query(self, p: Params) -> Tensor:
        x, y = self.validation()
        return likelihoods(self.apply(p, x), y).mean()


class Duplicates(Situation):
    """Half of the examples are there twice, side by side; dropout treats the two differently."""

    shuffle = False

    def columns(self) -> tuple[Tensor, ...]:
        x, y = normal(N, D), labels(N)
        x[1::2], y[1::2] = x[::2], y[::2]
        return x, y

    def net(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.4), nn.Linear(D, C))

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        return likelihoods(apply_linear(p, F.dropout(x, 0.4), "net.1"), y) / len(ids)

    def query(self, p: Params) -> Tensor:
        x, y = self.validation()
        return likelihoods(apply_linear(p, x, "net.1"), y).mean()


class DuplicateViews(Duplicates):
    """Each batch twice through dropout, so that equal examples have equal rows in several places."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(torch.cat([x, x])), torch.cat([y, y]))

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        z = apply_linear(p, F.dropout(torch.cat([x, x]), 0.4), "net.1")
        return sum(likelihoods(part, y) for part in z.chunk(2)) / (2 * len(ids))


class Penalty(Situation):
    """A loss function as a penalty on the weights, beside that of the data."""

    target = normal(C, D, seed=8)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + 0.3 * F.mse_loss(net.weight, self.target)  # type: ignore[arg-type]

    def rest(self, p: Params) -> Tensor:
        return 0.3 * (p["net.weight"] - self.target).square().mean()


class Autoencoder(Situation):
    """Noise on every row, drawn in eval mode too."""

    def net(self) -> nn.Module:
        return nn.ModuleDict({"mean": nn.Linear(D, 3), "spread": nn.Linear(D, 3), "out": nn.Linear(3, D)})

    def loss(self, net: Any, batch: Any, t: int) -> Tensor:
        x, _ = batch
        mean = net["mean"](x)
        return F.mse_loss(net["out"](mean + net["spread"](x).exp() * torch.randn_like(mean)), x)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x = self.columns()[0][ids]
        noise = torch.randn(len(ids), 3, dtype=torch.float64)
        hidden = apply_linear(p, x, "net.mean") + apply_linear(p, x, "net.spread").exp() * noise
        return (apply_linear(p, hidden, "net.out") - x).square().sum(1) / (D * len(ids))

    def query_step(self, net: Any, batch: Any) -> Tensor:
        return F.mse_loss(net["out"](net["mean"](batch[0])), batch[0])

    def query(self, p: Params) -> Tensor:
        x, _ = self.validation()
        return (apply_linear(p, apply_linear(p, x, "net.mean"), "net.out") - x).square().mean()


class WideAutoencoder(Autoencoder):
    """More examples in a batch than are run one by one among their own kind."""

    size, epochs = 12, 9


SITUATIONS: tuple[type[Situation], ...] = (
    Situation,
    MaskedTokens,
    EqualThenUnequal,
    MissingLabels,
    IgnoredTokens,
    FirstIgnored,
    TimeFirst,
    TimeFirstRegression,
    TwoViews,
    RaggedRepeats,
    Unreadable,
    UnreadableTokens,
    OneByOne,
    SometimesTwo,
    SometimesLabelled,
    BatchesOfOne,
    ZeroHead,
    Duplicates,
    DuplicateViews,
    Penalty,
    Autoencoder,
    WideAutoencoder,
)
