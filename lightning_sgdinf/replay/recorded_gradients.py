"""Gradients of a step taken again, as the optimizer had them when it was recorded.

A parameter without a gradient is left alone by the optimizer: one that was frozen then, or that no pass reached and
whose gradient had been set to ``None``. Where gradients are zeroed instead, one that no pass reached has a gradient of
zeros, and momentum and weight decay move it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sgdinf.log import Step


def recorded_gradients(
    step: Step, names: Sequence[str], grads: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients that the optimizer had.

    Args:
        step: The record.
        names: Of the parameters.
        grads: One per parameter, as passes that reach it give them; ``None`` where none does.
        parameters: Give shape and place of zeros.
    """
    held = {name for group in step.groups for name in group.params}
    absent = step.without_gradient

    def recorded(name: str, grad: Tensor | None, parameter: Tensor) -> Tensor | None:
        if name not in held or (absent is not None and name in absent):
            return None
        return torch.zeros_like(parameter) if grad is None and absent is not None else grad

    return [recorded(*each) for each in zip(names, grads, parameters, strict=True)]
