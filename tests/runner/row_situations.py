"""Losses whose rows are not one per example, as people write them, each beside what its examples add to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.runner.situations import C, D, N, Params, Situation, T, apply_linear, labels, likelihoods, normal

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
        return (likelihoods(apply_linear(p, a), y) + likelihoods(apply_linear(p, b), y)) / (2 * len(ids))


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
        return likelihoods(z, y.repeat(2)).view(2, -1).sum(0) / (2 * len(ids))


class Penalty(Situation):
    """A loss function as a penalty on the weights, beside that of the data."""

    target = normal(C, D, seed=8)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + 0.3 * F.mse_loss(net.weight, self.target)  # type: ignore[arg-type]

    def rest(self, p: Params) -> Tensor:
        return 0.3 * (p["net.weight"] - self.target).square().mean()


class RegressionWithPenalty(Situation):
    """The penalty and the data have a loss function of the same name."""

    target = Penalty.target

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), normal(N, C, seed=9)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        return F.mse_loss(net(x), y) + 0.3 * F.mse_loss(net.weight, self.target)  # type: ignore[arg-type]

    rest = Penalty.rest

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        return (apply_linear(p, x) - y).square().sum(1) / (C * len(ids))


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
    RegressionWithPenalty,
    Autoencoder,
    WideAutoencoder,
)
