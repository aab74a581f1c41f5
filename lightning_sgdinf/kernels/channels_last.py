"""Channels-last order of images, in which the CPU convolves and pools up to twice as fast.

A step's values and first derivatives are computed in the order that training used, so that they keep every bit. Its
second derivatives have no bits to keep: they are computed channels-last, throughout, since an operation whose arguments
are in different orders is several times slower than either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor as _is_batched
from torch._C._functorch import is_legacy_batchedtensor as _is_batched_the_old_way


def pays(x: Tensor) -> bool:
    """Return true if second derivatives at a tensor are better computed channels-last: float32 images on a CPU."""
    return x.ndim == 4 and x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()


def channels_last(x: Tensor) -> Tensor:
    """Return the same values in channels-last order; a tensor that is being vectorised over stays as it is."""
    if x.ndim != 4 or _is_batched(x) or _is_batched_the_old_way(x):
        return x
    if x.shape[1] == 1:  # in both orders at once; a copy settles it, so that what is computed from it is channels-last
        return x.clone(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last)


class Twin:
    """A tensor in training's order that is wanted channels-last too, once it comes to second derivatives."""

    __slots__ = ("_other", "_tensor")

    def __init__(self, tensor: Tensor | None = None) -> None:
        self._tensor, self._other = tensor, None
        if tensor is not None:
            self.set(tensor)

    def set(self, tensor: Tensor, other: Tensor | None = None) -> None:
        """Set the tensor, and its channels-last copy if there is one already; neither may change."""
        self._tensor, self._other = tensor.detach(), other

    @property
    def pays(self) -> bool:
        """Return true if second derivatives are better computed channels-last here."""
        return self._tensor is not None and pays(self._tensor)

    def get(self) -> Tensor:
        """Return the tensor in the order that pays."""
        assert self._tensor is not None
        if self._other is None:
            self._other = channels_last(self._tensor) if pays(self._tensor) else self._tensor
        return self._other

    def like(self, x: Tensor) -> Tensor:
        """Return another tensor in that order."""
        return channels_last(x) if self.pays else x


class Twins:
    """The channels-last copies of one pass: what one layer hands to the next is copied once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Twin]] = {}

    def of(self, x: Tensor) -> Twin:
        """Return the twin of a tensor."""
        known = self._known.get(id(x))
        if known is None:
            known = self._known[id(x)] = (x, Twin(x))
        return known[1]

    def note(self, x: Tensor, twin: Twin) -> Tensor:
        """Register an existing twin of a tensor and return the tensor."""
        self._known[id(x)] = (x, twin)  # with the tensor itself, so that its id is not given to another
        return x
