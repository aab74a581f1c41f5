"""Buffers that a pass moves and that a loss reads, as part of what is differentiated.

Spectral norm's vectors, running centres, codebooks, queues of keys: a pass reads them, and leaves other values for the
next. While a pass is differentiated each is a tensor with a graph that begins in a leaf, its value before the pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sgdinf.kernels import HeldConstants
from lightning_sgdinf.log import Trajectory, recorded_state


@dataclass(slots=True)
class MovedBuffer:
    """A buffer during one pass.

    Attributes:
        before: Its value before, a leaf.
        after: Its value after, with its graph; ``None`` where that was lost, as with all processes' but one.
    """

    before: Tensor
    after: Tensor | None


@contextmanager
def differentiable_buffers(
    module: nn.Module, names: Collection[str], held: HeldConstants
) -> Iterator[dict[str, MovedBuffer]]:
    """Let buffers carry a graph inside; afterwards the module has its own tensors again, with the new values.

    Args:
        module: The module.
        names: Of the buffers.
        held: Of the pass: what updates a buffer is a constant of training's gradient.

    Yields:
        What becomes of each, complete when the context is left.
    """
    own = {n: b for n, b in module.named_buffers() if n in names}
    places = [
        (name, part, key)
        for name, buffer in own.items()
        for part in module.modules()
        for key, value in part._buffers.items()
        if value is buffer
    ]
    moved = {name: MovedBuffer(buffer.detach().clone().requires_grad_(), None) for name, buffer in own.items()}
    lent = {name: held.keep(buffer.before.clone()) for name, buffer in moved.items()}
    for name, part, key in places:
        part._buffers[key] = lent[name]
    storages = {value.untyped_storage().data_ptr() for value in lent.values()}

    def pack(saved: Tensor) -> Tensor:
        """Save a copy of what the pass may overwrite: without gradients, as in training, nothing was saved of it."""
        return saved.detach().clone() if saved.untyped_storage().data_ptr() in storages else saved

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved) if lent else nullcontext():
            yield moved
    finally:
        for name, part, key in places:
            value = part._buffers[key]
            moved[name].after = lent[name] if value is None else value
            part._buffers[key] = own[name]
        with torch.no_grad():
            for name, buffer in own.items():
                buffer.copy_(moved[name].after)  # type: ignore[arg-type]


@contextmanager
def assigned_in_place(places: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Let a pass that assigns a new tensor to a buffer write its value into the tensor that was there.

    Args:
        places: Sub-modules and names of their buffers.
    """
    there = [part._buffers[key] for part, key in places]
    try:
        yield
    finally:
        for (part, key), own in zip(places, there, strict=True):
            value = part._buffers[key]
            if value is own and own is not None and own.grad_fn is not None:
                own.detach_()  # it was written to by what is a constant in training
            if value is not own and _alike(value, own):  # one that grew stays
                with torch.no_grad():
                    own.copy_(value)  # type: ignore[union-attr]
                part._buffers[key] = own


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.dtype == other.dtype


def moved_in_log(log: Trajectory, module: nn.Module) -> set[str]:
    """Return the names of the floating-point buffers that a run moved, but for BatchNorm's running statistics."""
    last, first = recorded_state(log, len(log)), recorded_state(log, int(log.state_indices[0]))
    statistics = tuple(
        f"{n}." for n, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)
    )
    moved = moved_by_pass(first.buffers, {n: b for n, b in last.buffers.items() if n in first.buffers}, ())
    return {name for name in moved if not name.startswith(statistics)}


def moved_by_pass(before: Mapping[str, Tensor], after: Mapping[str, Tensor], known: Collection[str]) -> set[str]:
    """Return the names of the floating-point buffers that a pass moved, but for known ones."""
    return {
        name
        for name, value in after.items()
        if name not in known
        and value.is_floating_point()
        and _alike(value, before.get(name))
        and not torch.equal(value, before[name])
    }
