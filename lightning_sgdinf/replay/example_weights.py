r"""Example weights that enter the gradient of an unmodified loss.

With weights ``w`` the batch gradient is to be :math:`g(w) = \sum_i w_i \nabla l_i + \nabla r`, where :math:`l_i` is
what example ``i`` adds to the loss (its part of the mean included) and ``r`` is the rest (penalties). The weights are
put in where the loss is taken: the input of a loss function of ``torch.nn.functional`` passes through an identity whose
backward multiplies the rows of example ``i`` by ``w_i``. So the value of the loss keeps every bit, and reductions,
class weights, label smoothing, focal-style code after an unreduced loss and sums of several losses are all handled by
the chain rule. Which rows are an example's is `lightning_sgdinf.replay.row_owners`' matter.

Where a step goes on with the value of a loss other than by adding and scaling (its root, its logarithm), what an
example does depends on that value, which depends on the weights. There :math:`\sum_r (w_r - 1) l_r` is added to the
value, which is 0 where all weights are 1; without it the gradient is the same wherever the value only enters a sum.

Differentiating :math:`\langle g(w), v\rangle` once gives both :math:`Hv` (in the parameters) and every slope
:math:`\langle \nabla l_i, v\rangle` (in the weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.utils._pytree import tree_map_only

from lightning_sgdinf.kernels import Axes, Handler, formula_of, on_stack
from lightning_sgdinf.replay.losses import (
    INPUTS,
    LOSSES,
    OF_CLASSES,
    OF_VECTORS,
    parts_of_value,
    rows_shape,
    shares_of_mean,
)
from lightning_sgdinf.replay.row_owners import EVERYBODY, LossRows, RowOrders, regular_order

Values: TypeAlias = Literal["none", "reduced", "all"]
"""Calls of loss functions whose value follows the weights."""


class UnknownRows(Exception):
    """A loss has rows whose owners are not known yet; never leaves `lightning_sgdinf.replay`."""


class UnknownDivisor(Exception):
    """A loss divides by something unknown, so it is not known what it would divide by without an example; as above."""


class _WeightRows(torch.autograd.Function):
    """Identity forward; backward multiplies the gradient by weights that are shaped to fit it."""

    @staticmethod
    def forward(x: Tensor, weights: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return grad * weights.to(grad.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Axes, x: Tensor, weights: Tensor) -> tuple[Tensor, int | None]:
        """Weight many models at once, also below a transformation that the step makes itself."""
        return _weighted_of_models(info.batch_size, in_dims, x, weights)


def _weighted(x: Tensor, weights: Tensor) -> Tensor:
    return on_stack(_weighted_of_models, _WeightRows.apply, x, weights)


def _weighted_of_models(count: int, axes: Axes, x: Tensor, weights: Tensor) -> tuple[Tensor, int | None]:
    """Weight many models at once, each with weights of its own."""
    if axes[0] is None:  # the same for all models, such as a target, so nothing that is trained lies behind it
        return x, None
    own = weights[None] if axes[1] is None else weights.movedim(axes[1], 0)
    return _WeightRows.apply(x.movedim(axes[0], 0), own), 0


def expect_zero_or_one(weights: Tensor) -> None:
    """Make sure that weights which are to be differentiated are 0 or 1.

    A second derivative in the parameters goes through the identity twice, so it is multiplied by ``w**2``: right for
    these values alone.

    Raises:
        ValueError: Others are among them.
    """
    own = weights.detach()
    if not bool(((own == 0) | (own == 1)).all()):
        raise ValueError(f"example weights that are differentiated must be 0 or 1, got {own.unique().tolist()[:5]}")


class LossTap:
    """Weights the gradient at the input of every loss function called while its handlers are in force.

    Args:
        weights: Example weights, ``[B]``.
        orders: Regular orders of rows that are known; ``None`` where all weights are equal, so that it does not matter.
        owners: Of each call's rows, where they were matched for this very batch.
        ask: Returns the owners of a call's rows as the user says them, shaped like the rows; ``None`` to find them out.
        reduced: Let losses divide by what is left, so that weights count in the divisor as well.
        only: Number of the one tapped call that is to carry weights; the rows of all others have weight 0.
        stacked: Inside ``torch.func.vmap``, where tensors do not say whether they carry a gradient.
        values: Calls whose value follows the weights, too: none; those that are ``"reduced"`` to a number; ``"all"``.

    Attributes:
        calls: Names of the loss functions that were tapped so far.
        owners: Of the rows of each of these calls, in their shape.
        passed: Names of the loss functions that were called and not tapped so far.
    """

    def __init__(
        self,
        weights: Tensor,
        orders: RowOrders | None,
        owners: Sequence[Tensor] | None = None,
        *,
        ask: Callable[[LossRows], Tensor | None] | None = None,
        reduced: bool = False,
        only: int | None = None,
        stacked: bool = False,
        values: Values = "none",
    ) -> None:
        self._only, self._reduced, self._values = only, reduced, values
        self.weights = weights
        self._ask = ask
        self.stacked = stacked
        self.calls: list[str] = []
        self.owners: list[Tensor] = []
        self.passed: list[str] = []
        self._orders, self._owners = orders, owners
        self._number = 0  # of the next call, also of those that carry no gradient

    def handlers(self) -> Mapping[Callable[..., Any], Handler]:
        """Return handlers for an `Interceptor`."""
        return dict.fromkeys(LOSSES, self._handle)

    def apply(self, value: Any) -> Any:
        """Tap an output of a sub-module whose rows are examples', if it is a tensor that carries a gradient.

        Raises:
            UnknownRows: It is not known whose rows they are.
        """
        if not self._carries(value) or not value.ndim:
            return value
        if self._reduced:
            raise UnknownDivisor("output")
        owned = self._row_weights("output", value.shape[:1])
        return _weighted(value, owned.view(*owned.shape, *[1] * (value.ndim - 1)))

    def _carries(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (value.is_floating_point() if self.stacked else value.requires_grad)

    def _row_weights(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the weight of each row's owner, in the shape of the rows."""
        number, rows = self._number, torch.Size(shape).numel()
        self._number += 1
        self.calls.append(name)
        if self._orders is None:
            return self.weights[:1].reshape([1] * len(shape)).expand(shape)
        owner = None if self._ask is None else self._ask(LossRows(name, tuple(shape), number))
        if owner is None and self._owners is None:
            owner = self._orders.known(number, name, rows, len(self.weights))
        elif owner is None and self._owners is not None:
            owner = self._owners[number] if number < len(self._owners) else None
        if owner is None or owner.numel() != rows:
            raise UnknownRows
        owner = owner.reshape(shape).to(self.weights.device)
        weights = self.weights[owner.clamp(min=0)]
        if self._only not in (None, len(self.calls) - 1):
            weights = torch.zeros_like(weights)
        self.owners.append(owner)
        return torch.where(owner == EVERYBODY, torch.ones_like(weights), weights)

    def _expect_same_rows(self, owner: Tensor) -> None:
        """Break off a stacked pass whose targets differ from model to model and have no regular order of rows.

        Each model chose rows of its own then, by what it predicts: models must be taken one after another.
        """
        if regular_order(owner, len(self.weights)) is None and bool((owner != EVERYBODY).any()):
            raise RuntimeError("the loss chooses its rows by what the model predicts")

    def _pass(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.passed.append(func.__name__)
        return func(*args, **kwargs)

    def _handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = [*args[:3], *(v for k, v in kwargs.items() if k in INPUTS)]
        if not any(map(self._carries, inputs)):
            self._number += 1
            return self._pass(func, args, kwargs)
        shape = rows_shape(func, inputs)
        weights = self._row_weights(func.__name__, shape)
        if self._reduced:
            weights = _dividing_by_what_is_left(func, args, kwargs, weights)
        if self.stacked and self._owners is not None and any(map(is_batchedtensor, inputs[1:])):
            self._expect_same_rows(self._owners[self._number - 1])

        def tapped(value: Any) -> Any:
            return _tapped(func, value, weights) if self._carries(value) else value

        value = formula_of(func)(
            *(tapped(a) if i < 3 else a for i, a in enumerate(args)),
            **{k: tapped(v) if k in INPUTS else v for k, v in kwargs.items()},
        )
        return value if self._values == "none" else self._following(value, weights, func, args, kwargs)

    def _following(
        self,
        value: Tensor,
        weights: Tensor,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Return a call's value with the weights of its rows in it."""
        parts, is_reduced = parts_of_value(func, args, kwargs)
        change = (weights.to(parts.dtype) - 1) * parts
        if is_reduced:
            return value + change.sum()
        return value + change if self._values == "all" else value


def _dividing_by_what_is_left(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Tensor
) -> Tensor:
    r"""Scale the weights of rows by :math:`\sum_r \nu_r / \sum_r w_r \nu_r`."""
    shares = shares_of_mean(func, args, kwargs)
    if shares is None:
        raise UnknownDivisor(func.__name__)
    shares = shares.to(weights).expand(weights.shape)
    left = (weights * shares).sum()
    there = left > 0
    return weights * torch.where(there, shares.sum() / torch.where(there, left, torch.ones_like(left)), left)


def _tapped(func: Callable[..., Any], value: Tensor, weights: Tensor) -> Tensor:
    """Tap one input of a loss.

    Args:
        func: The loss function.
        value: The input.
        weights: Of each row.
    """
    if func in OF_CLASSES:
        shaped = weights.unsqueeze(1) if value.ndim > 1 else weights
        if value.ndim > 1 and value.shape[:1] + value.shape[2:] != weights.shape:
            return value
    elif func is F.ctc_loss:
        shaped = weights.unsqueeze(-1)  # time is before the examples
    elif func in OF_VECTORS:
        shaped = weights.unsqueeze(-1) if value.ndim > weights.ndim else weights
    else:
        value, shaped = value.expand(weights.shape), weights  # a broadcast input is one of several rows
    return _weighted(value, shaped)


@contextmanager
def tapped_output(part: nn.Module, tap: Any) -> Iterator[None]:
    """Tap the output of a sub-module instead, for losses that are written by hand.

    Right whenever each output row feeds only its own example's loss.

    Args:
        part: The sub-module.
        tap: A `LossTap` or a `RowRecorder`.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        del module, inputs
        return tree_map_only(Tensor, tap.apply, output)

    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
