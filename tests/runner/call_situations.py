"""Losses whose calls, batches or choices of rows are unusual, each beside what its examples add to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.runner.row_situations import MaskedTokens, TimeFirst
from tests.runner.situations import C, D, N, Params, Situation, T, apply_linear, labels, likelihoods, normal


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


class HardestHalf(Situation):
    """Only the two examples of a batch that are predicted worst: others from step to step."""

    def columns(self) -> tuple[Tensor, ...]:
        return 0.05 * normal(N, D), labels(N)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        z = net(x)
        worst = F.cross_entropy(z.detach(), y, reduction="none").topk(min(2, len(y))).indices
        return F.cross_entropy(z[worst], y[worst])

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        losses = likelihoods(apply_linear(p, x), y)
        return losses * (losses >= losses.sort().values[-2]).detach() / 2


class Confident(Situation):
    """Only examples that are predicted surely enough."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        z = net(x)
        sure = z.detach().max(1).values > 0.3
        return F.cross_entropy(z[sure], y[sure], reduction="sum")

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        z = apply_linear(p, x)
        return likelihoods(z, y) * (z.max(1).values > 0.3).detach()


class MetricsBefore(Situation):
    """Loss functions as metrics, without a gradient, before the loss; one of them compares examples."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        z = net(x)
        metrics = F.l1_loss(z.detach(), torch.zeros_like(z)) + F.mse_loss(z[1:].detach(), z[:-1].detach())
        return F.cross_entropy(z, y) + 0.0 * metrics


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


class PenaltyInBatchesOfOne(Penalty):
    """No other example of the batch tells the penalty from the data."""

    size, epochs = 1, 1


class PenaltyInLastBatchOfOne(Penalty):
    """The same, at the last batch of each epoch."""

    size = 11


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


CALLS: tuple[type[Situation], ...] = (
    Unreadable,
    UnreadableTokens,
    OneByOne,
    SometimesTwo,
    SometimesLabelled,
    MetricsBefore,
    HardestHalf,
    Confident,
    BatchesOfOne,
    ZeroHead,
    Duplicates,
    DuplicateViews,
    Penalty,
    RegressionWithPenalty,
    PenaltyInBatchesOfOne,
    PenaltyInLastBatchOfOne,
    Autoencoder,
    WideAutoencoder,
)
