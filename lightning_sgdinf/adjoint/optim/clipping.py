r"""Gradient clipping as a map with a transposed derivative.

By norm, with total norm :math:`n = \lVert g\rVert_2` over all of the optimizer's parameters and bound ``v``:
:math:`g' = c\,g,\; c = \min(1, v / (n + 10^{-6}))`, so that where :math:`c < 1`

.. math:: p = c\,p' - \frac{v}{(n + 10^{-6})^2}\,\langle g, p'\rangle\,\frac{g}{n}.

By value: :math:`g' = \mathrm{clamp}(g, -v, v)`, and :math:`p = p'` where ``g`` was inside, 0 outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_sgdinf.log import Clip

_EPSILON = 1e-6  # what torch.nn.utils.clip_grad_norm_ adds to the norm

Pull = Callable[[Tensor], Tensor]
"""From the adjoint of the clipped gradient to that of the raw one, both ``[Q, P]``."""


def clip_gradient(grad: Tensor, parts: Sequence[Tensor], clip: Clip | None) -> tuple[Tensor, Pull]:
    """Clip as the Trainer does.

    Args:
        grad: Raw gradient, ``[P]``.
        parts: The same gradient in one tensor per parameter: torch takes the norm of their norms.
        clip: What to do; ``None`` does nothing.

    Returns:
        The clipped gradient ``[P]``, and the way back.
    """
    if clip is None:
        return grad, lambda push: push
    if clip.algorithm == "value":
        inside = grad.abs() <= clip.value
        return grad.clamp(-clip.value, clip.value), lambda push: push * inside
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in parts]))
    raw = clip.value / (total + _EPSILON)
    coefficient = torch.clamp(raw, max=1.0)

    def pull(push: Tensor) -> Tensor:
        if not raw < 1:
            return push
        slope = clip.value / (total + _EPSILON) ** 2 / total
        return coefficient * push - slope * (push @ grad.to(push.dtype))[:, None] * grad

    return grad * coefficient, pull
