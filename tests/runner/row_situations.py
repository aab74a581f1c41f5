"""Losses whose rows are not one per example, as people write them, each beside what its examples add to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


ROWS: tuple[type[Situation], ...] = (
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
)
