"""Any elementwise optimizer of ``torch.optim``, differentiated through torch's own step.

The step is taken with ``differentiable=True`` on a stretch of the parameter vector, and autograd pulls the adjoint
back. Nothing of an optimizer is written down here, so there is nothing to get wrong, but for two things. At a second
moment of exactly zero (pixels that are never lit) the chain rule through the square root gives ``inf * 0``. That
product's limit is zero, and is taken as such. And Adam's differentiable step divides by the learning rate, which is
zero where a warm-up begins or a schedule ends; parameters do not move then, and only the moments are taken from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.optim.base import Options, Pulled, Update, register_rule
from lightning_sgdinf.kernels import Interceptor

ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.ASGD,
)
"""Optimizers whose step is differentiable and works element by element, but for those that have a rule of their own.

Not ``Rprop``: its step follows the sign of the gradient alone, so its derivative in any example's weight is zero. Not
``LBFGS``, ``Adafactor``, ``Muon``: their steps are not differentiable or not elementwise. ``SparseAdam`` has a rule of
its own.
"""


_DIVIDES_BY_RATE = (torch.optim.Adam, torch.optim.AdamW)


class _SafeSqrt(torch.autograd.Function):
    """Square root with derivative 0 at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (root,) = ctx.saved_tensors
        return torch.where(root > 0, grad / (2 * root), torch.zeros_like(grad))


def _sqrt(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs) if kwargs or not args[0].requires_grad else _SafeSqrt.apply(args[0])


def _power_of_step(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return ``beta ** step`` in float64, as in training, where the step is a number and not a float32 tensor."""
    return func(args[0].double() if args[0].ndim == 0 else args[0], *args[1:], **kwargs)


_HANDLERS = {torch.sqrt: _sqrt, Tensor.sqrt: _sqrt, Tensor.sqrt_: _sqrt, Tensor.__rpow__: _power_of_step}


PART = 1 << 18
"""Elements that are stepped at once, with their graph."""


class TorchOptimRule:
    """`UpdateRule` of an elementwise ``torch.optim`` optimizer, through its own code.

    Args:
        kind: The optimizer's class.
    """

    needs_gradient = True

    def __init__(self, kind: type[torch.optim.Optimizer]) -> None:
        self._divides_by_rate = issubclass(kind, _DIVIDES_BY_RATE)
        self._kind: Callable[..., torch.optim.Optimizer] = kind
        self._accepted = set(inspect.signature(kind.__init__).parameters) - {"self", "params"}

    def take(self, params: Tensor, grad: Tensor, state: Mapping[str, Tensor], options: Options) -> Update:
        """See `UpdateRule.take`; of many elements some at a time, since a graph of all needs ten times their memory."""
        if len(params) <= PART:
            return self._take(params, grad, state, options)
        places = [slice(start, start + PART) for start in range(0, len(params), PART)]

        def part(here: slice) -> Update:
            own = {k: v[here] if v.shape == params.shape else v for k, v in state.items()}
            return self._take(params[here], grad[here], own, options)

        after, moments = torch.empty_like(params), {}
        for here in places:
            update = part(here)
            after[here] = update.params
            for key, value in update.state.items():
                if value.ndim:
                    moments.setdefault(key, params.new_empty(params.shape, dtype=value.dtype))[here] = value
                else:
                    moments[key] = value

        def pull(u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
            carry, push, carried = torch.empty_like(u), torch.empty_like(u), {}
            for here in places:
                pulled = part(here).pull(u[:, here], {k: v[:, here] for k, v in adjoint.items()})
                carry[:, here], push[:, here] = pulled.params, pulled.push
                for key, value in pulled.state.items():
                    carried.setdefault(key, torch.zeros_like(u))[:, here] = value
            return Pulled(carry, carried, push)

        return Update(after, moments, pull)

    def _take(self, params: Tensor, grad: Tensor, state: Mapping[str, Tensor], options: Options) -> Update:
        theta, g = params.detach().requires_grad_(), grad.detach().requires_grad_()
        leaves = {k: v.detach().clone() for k, v in state.items()}
        moving = {k: v.requires_grad_() for k, v in leaves.items() if v.shape == theta.shape and v.is_floating_point()}
        with torch.enable_grad(), Interceptor(_HANDLERS):
            after, new_state = self._step(theta, g, leaves, options)
        inputs = [theta, g, *moving.values()]

        def pull(u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
            keys = [k for k in adjoint if k in new_state and new_state[k].requires_grad]
            outputs = [after, *(new_state[k] for k in keys)]
            present: list[int] = []  # nothing depends on some, such as an average that is only kept

            def one(*cotangents: Tensor) -> list[Tensor]:
                grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, retain_graph=True)
                present[:] = [i for i, x in enumerate(grads) if x is not None]
                return [grads[i] for i in present]

            given = [u, *(adjoint[k] for k in keys)]
            rows = [x[None] for x in one(*(c[0] for c in given))] if len(u) == 1 else torch.func.vmap(one)(*given)
            columns: list[Tensor | None] = [None] * len(inputs)
            for i, column in zip(present, rows, strict=True):
                columns[i] = column
            none = torch.zeros_like(u)
            carried = {k: c for k, c in zip(moving, columns[2:], strict=True) if c is not None}
            return Pulled(
                none if columns[0] is None else columns[0], carried, none if columns[1] is None else columns[1]
            )

        return Update(after.detach(), {k: v.detach() for k, v in new_state.items()}, pull)

    def _step(
        self, theta: Tensor, g: Tensor, state: Mapping[str, Tensor], options: Options
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shell = torch.nn.Parameter(torch.empty_like(theta))
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k in self._accepted}
        for name in ("foreach", "fused", "capturable"):
            if name in chosen:
                chosen[name] = False
        chosen["differentiable"] = True
        stands = self._divides_by_rate and not chosen["lr"]
        if stands:
            chosen["lr"] = 1.0  # the moments are the same at any rate
        optimizer = self._kind([shell], **chosen)
        # The optimizer updates in place: it is given copies that carry the graph, where its constructor wants a leaf.
        parameter = theta.clone()
        parameter.grad = g
        optimizer.param_groups[0]["params"] = [parameter]
        fresh = optimizer.state.pop(shell, None)
        if state:
            optimizer.state[parameter] = {k: v.clone() for k, v in state.items()}
        elif fresh:
            optimizer.state[parameter] = fresh
        optimizer.step()
        moments = {k: v for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
        return theta.clone() if stands else parameter, moments


def _register(kind: type[torch.optim.Optimizer]) -> None:
    register_rule(f"{kind.__module__}.{kind.__qualname__}", lambda: TorchOptimRule(kind))


for _kind in ELEMENTWISE:
    _register(_kind)
