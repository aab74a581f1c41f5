"""A whole optimizer step: clipping, then every param group's rule, on the parameter vector.

Parameters that lie side by side, belong to one group and have the same scalars in their state go through the rule in
one stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.optim.base import Update, UpdateRule
from lightning_sgdinf.adjoint.optim.clipping import Pull, clip_gradient
from lightning_sgdinf.adjoint.optim.sparse_adam import spread
from lightning_sgdinf.errors import ModelMismatchError
from lightning_sgdinf.log import Step
from lightning_sgdinf.parameters import ParameterVector, joined_view
from lightning_sgdinf.replay import Objective, recorded_gradients
from lightning_sgdinf.state import ModelState


class _Stretch(NamedTuple):
    """Neighbouring parameters that one rule updates at once."""

    names: tuple[str, ...]
    where: slice
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TakenStep:
    """An optimizer step that was taken, ready to be pulled back through.

    Attributes:
        params: Parameters after the step, ``[P]``.
        stretches: The updates it was made of.
    """

    params: Tensor
    stretches: tuple[tuple[_Stretch, Update], ...]
    unclip: Pull

    def pull(self, adjoint: Adjoint) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return carry of the parameters ``[Q, P]``, carry of the optimizer state by key, push ``[Q, P]``."""
        if len(self.stretches) == 1 and self.stretches[0][0].where == slice(0, adjoint.params.shape[1]):
            pulled = self.stretches[0][1].pull(adjoint.params, adjoint.optimizer)
            return pulled.params, dict(pulled.state), self.unclip(pulled.push)
        carry, push = adjoint.params.clone(), torch.zeros_like(adjoint.params)
        state = {k: v.clone() for k, v in adjoint.optimizer.items()}
        for stretch, update in self.stretches:
            here = stretch.where
            pulled = update.pull(adjoint.params[:, here], {k: v[:, here] for k, v in adjoint.optimizer.items()})
            carry[:, here], push[:, here] = pulled.params, pulled.push
            for value in state.values():
                value[:, here] = 0
            for key, value in pulled.state.items():
                state.setdefault(key, torch.zeros_like(push))[:, here] = value
        return carry, state, self.unclip(push)

    def only_pull(self) -> TakenStep:
        """Return the step without the values that it led to, of which pulling back needs none."""
        nothing = self.params[:0]
        stretches = tuple((where, replace(update, params=nothing, state={})) for where, update in self.stretches)
        return replace(self, params=nothing, stretches=stretches)

    def state_after(self, vector: ParameterVector) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return parameters and optimizer state after the step, by name."""
        params = dict(zip(vector.names, vector.split(self.params), strict=True))
        optimizer: dict[str, dict[str, Tensor]] = {}
        for stretch, update in self.stretches:
            sizes = [params[n].numel() for n in stretch.names]
            for key, value in update.state.items():
                parts = value.split(sizes) if value.ndim else [value] * len(sizes)
                for name, part in zip(stretch.names, parts, strict=True):
                    optimizer.setdefault(name, {})[key] = part.view(params[name].shape) if value.ndim else part
        return params, optimizer


def take_step(
    rule: UpdateRule,
    vector: ParameterVector,
    state: ModelState,
    grads: Sequence[Tensor | None],
    step: Step,
    touched: Tensor | None = None,
) -> TakenStep:
    """Take the optimizer's step.

    Args:
        rule: The optimizer's map.
        vector: The order of parameters.
        state: State before the step.
        grads: Raw gradient per parameter; ``None`` where no pass reaches it. What the optimizer had is in the step.
        step: Hyper-parameters, clipping, and which parameters had a gradient.
        touched: True for the elements that the optimizer does not leave alone, bool ``[P]``; ``None`` for all.

    Raises:
        ModelMismatchError: If the step's groups hold a parameter that is not among the trained ones.
    """
    theta = joined_view([state.params[n] for n in vector.names])
    like = next((g for g in grads if g is not None), theta)  # device and precision the step is taken again in
    theta = theta.to(like)
    grads = recorded_gradients(step, vector.names, grads, vector.split(theta))
    present = {n: g for n, g in zip(vector.names, grads, strict=True) if g is not None}
    filled = [like.new_zeros(shape) if g is None else g for shape, g in zip(vector.shapes, grads, strict=True)]
    grad, unclip = clip_gradient(vector.join(filled), list(present.values()), step.clip if present else None)
    after = theta
    updates: list[tuple[_Stretch, Update]] = []
    for stretch in _stretches(vector, state, step, present):
        own = _gather(state, stretch, theta)
        update = _update(rule, theta[stretch.where], grad[stretch.where], own, stretch, touched)
        if stretch.where == slice(0, vector.size):
            after = update.params
        else:
            after = after.clone() if after is theta else after
            after[stretch.where] = update.params
        updates.append((stretch, update))
    return TakenStep(after, tuple(updates), unclip)


def touched_elements(
    rule: UpdateRule, objective: Objective, over_processes: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
) -> Tensor | None:
    """Return the elements that an optimizer does not leave alone in the step at hand; see `take_step`.

    Args:
        rule: The optimizer's map.
        objective: Knows the rows of the step's gradients.
        over_processes: Sums tensors over the processes that share a batch.
    """
    if not getattr(rule, "lazy", False):
        return None
    rows = [objective.passes.sparse_rows.of(p).to(p.dtype) for p in objective.parameters]
    return objective.vector.join([r for r in over_processes(rows) if r is not None]) > 0


def _update(
    rule: UpdateRule,
    params: Tensor,
    grad: Tensor,
    state: Mapping[str, Tensor],
    stretch: _Stretch,
    touched: Tensor | None,
) -> Update:
    if touched is None:
        return rule.take(params, grad, state, stretch.options)
    chosen = touched[stretch.where]
    some = {k: v[chosen] if v.ndim else v for k, v in state.items()}
    return spread(rule.take(params[chosen], grad[chosen], some, stretch.options), chosen, params, state)


def _gather(state: ModelState, stretch: _Stretch, like: Tensor) -> dict[str, Tensor]:
    """Return the optimizer's state of a stretch by key: tensors joined, ``[n]``, scalars as they are."""
    gathered: dict[str, Tensor] = {}
    for key, value in state.optimizer.get(stretch.names[0], {}).items():
        if value.shape == state.params[stretch.names[0]].shape and value.is_floating_point() and key != "step":
            gathered[key] = joined_view([state.optimizer[n][key] for n in stretch.names]).to(like)
        else:
            gathered[key] = value
    return gathered


def _stretches(vector: ParameterVector, state: ModelState, step: Step, present: Collection[str]) -> list[_Stretch]:
    """Return the longest runs of neighbouring parameters that one call of the rule can update.

    A rule is elementwise, so neighbours go through it together if nothing but tensors tells them apart: the same group
    (hyper-parameters), and the same scalars in the optimizer's state, such as step counts, which differ where a
    parameter had no gradient for a while.

    Raises:
        ModelMismatchError: If the step's groups hold a parameter that is not among the trained ones.
    """
    where = vector.slices
    group_of: dict[str, int] = {}
    for number, group in enumerate(step.groups):
        for name in group.params:
            if name not in where:
                raise ModelMismatchError(
                    f"step {step.index} updates {name!r}, which is not among the trained parameters of the log"
                )
            group_of[name] = number
    stretches: list[_Stretch] = []
    last: tuple[Any, ...] | None = None
    for name in vector.names:
        if name not in present or name not in group_of:
            last = None  # the optimizer leaves it alone, so a stretch ends before it
            continue
        entries = state.optimizer.get(name, {})
        shape = state.params[name].shape
        # A tensor that belongs to a parameter of no dimension is itself a scalar: such a parameter goes alone.
        scalars = tuple((k, v.item() if v.ndim == 0 and len(shape) else None) for k, v in sorted(entries.items()))
        kind = (group_of[name], scalars, len(shape) == 0)
        if kind == last and not kind[2]:
            names, begun, options = stretches.pop()
            stretches.append(_Stretch((*names, name), slice(begun.start, where[name].stop), options))
        else:
            stretches.append(_Stretch((name,), where[name], step.groups[group_of[name]].options))
        last = kind
    return stretches
