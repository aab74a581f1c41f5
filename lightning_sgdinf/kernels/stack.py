"""The tensors of many models behind a vectorised pass, for operations that know better how to treat them at once.

An ``autograd.Function`` with a ``vmap`` rule does the same, at a millisecond per call: functorch sends it through
python several times. Small models are slow for no other reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, _add_batch_dim, _unwrap_batched
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

Axes = tuple[int | None, ...]
"""Dimension of each operand in which the models are; ``None`` where it is the same for all."""


def on_stack(rule: Callable[..., tuple[Tensor, int | None]], plain: Callable[..., Any], *operands: Any) -> Any:
    """Apply an operation to all models of a vectorised pass at once.

    Args:
        rule: Is given the number of models, the axes, and the operands with all models in them; returns the result
            and its axis. It is differentiated through.
        plain: The operation on the operands as they are, where they are not those of many models, or in a nested
            transformation.
        operands: Tensors, or what is passed on.
    """
    if not torch._C._are_functorch_transforms_active():
        return plain(*operands)
    interpreter: Any = retrieve_current_functorch_interpreter()
    if interpreter.key() != TransformType.Vmap:
        return plain(*operands)
    level = interpreter.level()
    tensors, axes = [], []
    for operand in operands:
        inside, axis = _unwrap_batched(operand, level) if isinstance(operand, Tensor) else (operand, None)
        tensors.append(inside)
        axes.append(axis)
    if not any(axis is not None for axis in axes):
        return plain(*operands)
    with interpreter.lower():
        value, axis = rule(interpreter.batch_size(), tuple(axes), *tensors)
    return value if axis is None else _add_batch_dim(value, axis, level)
