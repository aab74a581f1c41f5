"""Checkpointed parts of a step, run as they are written: the re-entrant kind has no graph to differentiate twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Run what ``checkpoint(..., use_reentrant=True)`` wraps without it, inside: values and gradients are the same."""
    before = vars(CheckpointFunction).get("apply")
    CheckpointFunction.apply = staticmethod(_run)
    try:
        yield
    finally:
        if before is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = before


def _run(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    # Without an argument that needs a gradient, what is inside gets none, either.
    reached = any(isinstance(a, Tensor) and a.requires_grad for a in args)
    with nullcontext() if reached else torch.no_grad():
        return function(*args)
