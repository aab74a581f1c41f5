r"""BatchNorm's running statistics as part of what is differentiated.

A training-mode layer does :math:`r \leftarrow (1 - m) r + m\,b(\theta)` with the batch statistic ``b``; a query in eval
mode reads ``r``. So the walk carries an adjoint :math:`\lambda` for ``r``: a step adds :math:`m \langle\lambda,
b(\theta)\rangle` to what is differentiated and then :math:`\lambda \leftarrow (1 - m) \lambda`. ``torch`` does not
differentiate an eval-mode layer in its statistics; here that is computed by its formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.kernels import batch_norm
from lightning_sgdinf.kernels.channels_last import Twins
from lightning_sgdinf.kernels.intercept import Handler


@dataclass(frozen=True, slots=True)
class StatisticUpdate:
    """One running statistic moved by one training-mode layer.

    Attributes:
        name: The buffer.
        momentum: ``m``, the weight of the batch statistic.
        batch_statistic: ``b(theta)``, with its graph.
    """

    name: str
    momentum: float
    batch_statistic: Tensor


class RunningStatistics:
    """Watches ``F.batch_norm`` during one differentiated pass.

    Attributes:
        updates: Updates seen, in order.
        leaves: Statistics that an eval-mode layer read, as leaves that require gradients, by buffer name.
    """

    def __init__(self, module: nn.Module, twins: Twins) -> None:
        self._twins = twins
        self._names = {id(b): n for n, b in module.named_buffers()}
        self.updates: list[StatisticUpdate] = []
        self.leaves: dict[str, Tensor] = {}

    def handlers(self) -> Mapping[Callable[..., Any], Handler]:
        """Return handlers for an `Interceptor`."""
        return {F.batch_norm: self._handle, F.instance_norm: self._handle_instances}

    def _handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._batch_norm(func, *args, **kwargs)

    def _batch_norm(
        self,
        func: Callable[..., Any],
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if running_mean is not None and running_var is not None and running_mean.requires_grad:
            return _with_graph(func, input, (running_mean, running_var), weight, bias, training, momentum, eps)
        mean, var = self._names.get(id(running_mean)), self._names.get(id(running_var))
        if mean is None or var is None or running_mean is None or running_var is None:
            return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if training and batch_norm.fits(input, running_mean):
            running = (running_mean, running_var)
            normalised = batch_norm.normalise(input, weight, bias, running, momentum, eps, self._twins.of(input))
            self.updates.append(StatisticUpdate(mean, momentum, normalised.mean))
            self.updates.append(StatisticUpdate(var, momentum, normalised.var))
            return normalised.out
        if training:
            axes = [0, *range(2, input.ndim)]
            x = input if input.dtype == running_mean.dtype else input.to(running_mean.dtype)
            self.updates.append(StatisticUpdate(mean, momentum, x.mean(axes)))
            self.updates.append(StatisticUpdate(var, momentum, x.var(axes, unbiased=True)))
            return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        centre = self.leaves.setdefault(mean, running_mean.detach().clone().requires_grad_())
        variance = self.leaves.setdefault(var, running_var.detach().clone().requires_grad_())
        return _by_statistics(input, centre, variance, weight, bias, eps)

    def _handle_instances(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _instance_norm(func, *args, **kwargs)


def _by_statistics(
    input: Tensor, centre: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalise with given statistics, by the formula."""
    shape = (1, -1) + (1,) * (input.ndim - 2)
    out = (input - centre.view(shape)) * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _with_graph(
    func: Callable[..., Any],
    input: Tensor,
    running: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Call ``F.batch_norm`` with statistics that carry a graph, which its kernel would cut off."""
    if not training:
        return _by_statistics(input, *running, weight, bias, eps)
    axes = [0, *range(2, input.ndim)]
    for statistic, value in zip(running, (input.mean(axes), input.var(axes, unbiased=True)), strict=True):
        statistic.mul_(1 - momentum).add_(value, alpha=momentum)
    return func(input, None, None, weight, bias, True, momentum, eps)


def _instance_norm(
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Call ``F.instance_norm``; running statistics that carry a graph are moved and read by their formula."""
    if running_mean is None or running_var is None or not running_mean.requires_grad:
        return func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if not use_input_stats:
        return _by_statistics(input, running_mean, running_var, weight, bias, eps)
    axes = [*range(2, input.ndim)]
    for statistic, value in ((running_mean, input.mean(axes)), (running_var, input.var(axes, unbiased=True))):
        statistic.mul_(1 - momentum).add_(value.mean(0), alpha=momentum)
    return func(input, None, None, weight, bias, True, momentum, eps)
