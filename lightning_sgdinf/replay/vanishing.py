r"""Gradients that are zero but for rounding, and that an optimizer makes steps of all the same.

A bias before a normalisation, or of an attention's keys, changes no loss: its gradient is zero whatever the weights of
the examples are, and what is computed for it is rounding. An optimizer that divides by the gradient's own size (Adam,
RMSprop, Adagrad) makes a whole step of it. That step is part of the run; how rounding depends on an example's weight is
not, and divided by its own size it would drown the scores. So such elements are held as recorded:

.. math:: g = \hat g(\theta, w) + \rho,

with :math:`\hat g` the gradient without rounding, and the rounding :math:`\rho` the recorded one whatever ``w`` is. Of
these elements :math:`\hat g = 0`, so nothing is pulled back through them.

Which they are is `lightning_sgdinf.replay.vanishing_search`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf.log import Step
from lightning_sgdinf.parameters import ParameterVector

SMALL = 1e-5
"""Part of the largest element of a step's gradient that rounding stays below: a larger one is no rounding there."""


@dataclass(frozen=True, slots=True)
class VanishingGradient:
    """The elements of a run's gradient that are zero but for rounding.

    Attributes:
        elements: True for these, in the shape of each parameter that has some, by its place among the parameters.
        recorded: What rounding made of them in steps of the run, zero for others, by step; only where a run in a finer
            precision needs it.
    """

    elements: Mapping[int, Tensor] = field(default_factory=dict)
    recorded: dict[int, Mapping[int, Tensor]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return the number of these elements."""
        return sum(int(chosen.sum()) for chosen in self.elements.values())

    def in_step(self, grads: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """Return the elements that are as small as rounding in a step's gradient, too."""
        if not self.elements:
            return {}
        most = max((float(g.detach().abs().max()) for g in grads if g is not None and g.numel()), default=0.0)
        own = {place: (grads[place], chosen) for place, chosen in self.elements.items()}
        return {
            k: chosen.to(g.device) & (g.detach().abs() <= SMALL * most)
            for k, (g, chosen) in own.items()
            if g is not None
        }

    def held(self, grads: Sequence[Tensor | None], push: Tensor, vector: ParameterVector) -> Tensor:
        """Return what a step pushes into its gradient, ``[Q, P]``, with zeros for these elements, which are held."""
        here = self.in_step(grads)
        push = push.clone() if here else push  # a rule may have given the same tensor twice
        for place, chosen in here.items():
            push[:, vector.slices[vector.names[place]]].masked_fill_(chosen.reshape(-1), 0.0)
        return push

    def record(self, step: Step, grads: Sequence[Tensor | None]) -> None:
        """Keep what rounding made of these elements in a step."""
        here: dict[int, Tensor] = {}
        for place, chosen in self.in_step(grads).items():
            grad = grads[place]
            assert grad is not None
            here[place] = torch.where(chosen, grad.detach(), torch.zeros_like(grad))
        self.recorded[step.index] = here

    def restored(self, step: Step, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return a step's gradients with the recorded rounding: beside their own value, or in the place of their own
        rounding where they are computed as recorded."""
        known = self.recorded.get(step.index, {})
        if not known:
            return list(grads)
        return [g if g is None or place not in known else _with(g, known[place]) for place, g in enumerate(grads)]


def _with(grad: Tensor, rounding: Tensor) -> Tensor:
    rounding = rounding.to(grad.device)
    return torch.where(rounding != 0, rounding, grad) if grad.dtype == rounding.dtype else grad + rounding
