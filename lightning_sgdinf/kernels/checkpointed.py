"""Checkpointed parts of a step, run as they are written: there is no graph of a recomputation to differentiate twice.

Values and gradients are the same. But training runs such a part twice, once more in its backward pass, and what the
part moves, such as BatchNorm's running statistics, it moves twice. So a part that has moved something is run again when
the step is over, the last one first, as in training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.utils import checkpoint

_GENERATOR = "_checkpoint_without_reentrant_generator"


class CheckpointedParts:
    """The checkpointed parts of a pass.

    Args:
        versions: Returns what differs once a buffer has been written to.
    """

    def __init__(self, versions: Callable[[], Any]) -> None:
        self._versions = versions
        self._again: list[Callable[[], Any]] = []

    def repeat(self) -> None:
        """Run those again that have moved something, the last one first; what they return is not wanted."""
        while self._again:
            self._again.pop()()

    @contextmanager
    def noting(self, part: partial[Any], *, keeps_random_state: bool, saves: Saves) -> Iterator[None]:
        """Note a part that is run inside, if training runs it again and it moves something.

        Args:
            part: It.
            keeps_random_state: It draws the same random numbers again.
            saves: Tells, once it has been run, if there is something to recompute.
        """
        random, before = _RandomState(*part.args), self._versions()
        with saves.watched():
            yield
        unknown = torch._C._are_functorch_transforms_active()  # where versions do not tell
        if saves.any and (unknown or before != self._versions()):
            self._again.append(partial(random.run, part) if keeps_random_state else part)


class _RandomState:
    """The generators as they are before a part is run, on the processor and where its arguments are."""

    def __init__(self, *args: Any) -> None:
        self._own = torch.get_rng_state()
        self._devices, self._states = checkpoint.get_device_states(*args)

    def run(self, part: Callable[[], Any]) -> None:
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._own)
            checkpoint.set_device_states(self._devices, self._states)
            part()


@dataclass(slots=True)
class Saves:
    """Tells if tensors are saved for a backward pass, which recomputes a part whose tensors it needs."""

    any: bool = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at what is saved inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._note, lambda saved: saved):
            yield

    def _note(self, tensor: Tensor) -> Tensor:
        self.any = True
        return tensor


@contextmanager
def plain_checkpoints(versions: Callable[[], Any] = tuple) -> Iterator[CheckpointedParts]:
    """Run what ``checkpoint(...)`` wraps without it, inside.

    Args:
        versions: See `CheckpointedParts`.
    """
    parts = CheckpointedParts(versions)
    reentrant, generator = vars(checkpoint.CheckpointFunction).get("apply"), getattr(checkpoint, _GENERATOR)
    checkpoint.CheckpointFunction.apply = staticmethod(partial(_run, parts))
    setattr(checkpoint, _GENERATOR, partial(_run_around, parts, inspect.signature(generator)))
    try:
        yield parts
    finally:
        setattr(checkpoint, _GENERATOR, generator)
        if reentrant is None:
            del checkpoint.CheckpointFunction.apply
        else:
            checkpoint.CheckpointFunction.apply = reentrant


def _run(parts: CheckpointedParts, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    """Run a part of the re-entrant kind."""
    part = partial(function, *args)
    # Without an argument that needs a gradient, what is inside gets none, either.
    if not any(map(_needs_gradient, args)):
        with torch.no_grad():
            return part()
    with parts.noting(part, keeps_random_state=preserve_rng_state, saves=Saves(any=True)):
        return part()


def _needs_gradient(value: Any) -> bool:
    while isinstance(value, Tensor) and is_batchedtensor(value):  # in a vectorised pass
        value = get_unwrapped(value)
    return isinstance(value, Tensor) and value.requires_grad


def _run_around(parts: CheckpointedParts, signature: inspect.Signature, *given: Any, **named: Any) -> Iterator[None]:
    """Do around a part of the other kind what torch's generator does, which is stopped once the part has been run."""
    bound = signature.bind(*given, **named)
    bound.apply_defaults()
    own = bound.arguments
    part = partial(own["fn"], *own["args"], **own["kwargs"])
    with parts.noting(part, keeps_random_state=own["preserve_rng_state"], saves=Saves()):
        yield
