"""The buffers of a borrowed module, where they lie: a step may put other tensors in their places."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_sgdinf.errors import ModelMismatchError
from lightning_sgdinf.log import is_recordable


class ModuleBuffers:
    """Gives a module its buffers, and reads them.

    Args:
        module: The borrowed module.
        dtype: Floating-point precision that takes the place of the recorded one; ``None`` for that.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._own = {n: b for n, b in module.named_buffers() if is_recordable(b)}
        self._owners = {n: (module.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in self._own}
        self._kept: dict[str, Tensor] = {}

    @property
    def present(self) -> dict[str, Tensor]:
        """Return the buffers as they are now, by name."""
        entries = {n: owner._buffers.get(key) for n, (owner, key) in self._owners.items()}
        return {n: b for n, b in entries.items() if b is not None}

    def load(self, buffers: Mapping[str, Tensor]) -> None:
        """Put values in their places.

        Raises:
            ModelMismatchError: If a recorded buffer is not there; names it.
        """
        self._kept = {n: v for n, v in self._kept.items() if n not in buffers}
        for name, value in buffers.items():
            if name not in self._owners:
                raise ModelMismatchError(
                    f"the log has a buffer {name!r} that this model lacks; pass the model that was trained, with the "
                    "buffers that it registers while it trains"
                )
            self._put(name, value)

    def read(self) -> dict[str, Tensor]:
        """Return copies of the buffers as they are now."""
        self.put_back()
        return {n: b.detach().clone() for n, b in self.present.items()}

    def keep(self) -> None:
        """Remember the buffers as they are now, for `put_back`."""
        self._kept = self.read()

    def put_back(self) -> None:
        """Undo what has been made of them since they were kept."""
        kept, self._kept = self._kept, {}
        for name, value in kept.items():
            self._put(name, value)

    def _put(self, name: str, value: Tensor) -> None:
        (owner, key), own = self._owners[name], self._own[name]
        computed = self._dtype is not None and value.is_floating_point() and value.dtype.itemsize > 1
        dtype = self._dtype if computed else value.dtype
        if own.shape == value.shape and own.dtype == dtype:
            owner._buffers[key] = own
            own.copy_(value)
        else:  # it grew, or is of another kind than this module's
            owner._buffers[key] = value.to(own.device, dtype, copy=True)
