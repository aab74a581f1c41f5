"""Losses that are no sum of what examples add: their value is bent, or what an example counts for is made of others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.runner.situations import C, D, N, Params, Situation, apply_linear, labels, likelihoods, normal


class RootOfMean(Situation):
    """The root of a mean squared error."""

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, D), labels(N), normal(N, C, seed=7)

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return F.mse_loss(net(batch[0]), batch[2]).sqrt()

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        x, _, target = (c[ids] for c in self.columns())
        return (weights * (apply_linear(p, x) - target).square().mean(1)).mean().sqrt()


class LogarithmBesideASum(RootOfMean):
    """In every second step, a logarithm of a mean beside a sum and a penalty."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, target = batch
        z = net(x)
        bent = F.mse_loss(z, target).log1p() if t % 2 else 0.0
        return bent + F.cross_entropy(z, y, reduction="sum") / 4 + 0.1 * net.weight.square().sum()  # type: ignore[union-attr,operator]

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        x, y, target = (c[ids] for c in self.columns())
        z = apply_linear(p, x)
        bent = (t % 2) * (weights * (z - target).square().mean(1)).mean().log1p()
        return bent + (weights * likelihoods(z, y)).sum() / 4 + 0.1 * p["net.weight"].square().sum()


class Hardest(Situation):
    """The loss of the two examples that are predicted worst."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1], reduction="none").topk(2).values.mean()

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        losses = likelihoods(apply_linear(p, x), y)
        return (weights * losses)[losses.topk(2).indices].mean()


class ByHardness(Situation):
    """Weights that are made of the losses of the batch."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        losses = F.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return (losses * torch.softmax(losses.detach(), 0)).sum()

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        losses = likelihoods(apply_linear(p, x), y)
        return (weights * losses * torch.softmax(losses.detach(), 0)).sum()


class LearnedWeights(RootOfMean):
    """Two losses, each with a trained variance (Kendall et al., 2018), whose gradient is the value of the loss."""

    def net(self) -> nn.Module:
        net = nn.Linear(D, C)
        net.log_variances = nn.Parameter(torch.tensor([0.3, -0.2]))
        return net

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        z, s = net(batch[0]), net.log_variances
        losses = torch.stack([F.cross_entropy(z, batch[1]), F.mse_loss(z, batch[2])])
        return ((-s).exp() * losses + s).sum()  # type: ignore[operator]

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        x, y, target = (c[ids] for c in self.columns())
        z, s = apply_linear(p, x), p["net.log_variances"]
        first, second = (weights * likelihoods(z, y)).mean(), (weights * (z - target).square().mean(1)).mean()
        return first * (-s[0]).exp() + second * (-s[1]).exp() + s.sum()


class LearnedWeightOfRows(LearnedWeights):
    """The losses of rows, times one trained factor, before they are reduced by hand; in every second step."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        z, s = net(batch[0]), net.log_variances
        rows = F.mse_loss(z, batch[2], reduction="none").mean(1)
        return ((-s[0]).exp() * rows).mean() + (F.cross_entropy(z, batch[1]) if t % 2 else 0.0)  # type: ignore[index,operator]

    def weighted(self, p: Params, ids: Tensor, t: int, weights: Tensor) -> Tensor:
        x, y, target = (c[ids] for c in self.columns())
        z, s = apply_linear(p, x), p["net.log_variances"]
        rows = (-s[0]).exp() * (z - target).square().mean(1) + (t % 2) * likelihoods(z, y)
        return (weights * rows).mean()


class ScaledByALoss(Situation):
    """A term of the data that no weight reaches, and that the value of a loss is multiplied with."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        z = net(batch[0])
        loss = F.cross_entropy(z, batch[1])
        return loss + loss.detach() * z.square().mean()


BENT: tuple[type[Situation], ...] = (RootOfMean, LogarithmBesideASum, LearnedWeights, LearnedWeightOfRows)
COUPLED: tuple[type[Situation], ...] = (Hardest, ByHardness)
