"""Watch what nothing trains: frozen parameters, and buffers that a log cannot hold.

They are not written down, so they must stay what they are. Reading all of a large frozen model at every step would cost
too much: between two thorough looks, a few numbers of each tensor and its version are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_sgdinf.log import Constant, constants_of, is_recordable

_SAMPLED = 8  # numbers of a tensor that are looked at in every step


class ConstantWatch:
    """Watches the tensors of a module that are no part of its recorded state.

    Args:
        module: The LightningModule.
        state: Names of the parameters in the state.

    Attributes:
        constants: What they were when they were last looked at, by name.
    """

    def __init__(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        self._module = module
        self._tensors = constants_of(module, state)
        self._seen: list[str] = []
        self.constants = {name: Constant.of(name, value) for name, value in self._tensors.items()}
        self._refresh()

    def join(self, state: Mapping[str, Tensor]) -> dict[str, bool]:
        """Stop watching what has joined the state; return, by name, if it is what it was at the beginning."""
        joined = {n: c.is_that_of(state[n]) for n, c in self.constants.items() if n in state}
        for name in joined:
            del self._tensors[name], self.constants[name]
        if joined:
            self._refresh()
        return joined

    def moved(self, *, thorough: bool) -> list[str]:
        """Return the names of those that are no longer what they were at the last call, and of what `look` saw.

        Args:
            thorough: Read all of each; otherwise as much as tells of any tensor that was written to in place, and of
                most that were changed otherwise.
        """
        seen, self._seen = self._seen, []
        if not thorough and self._versions == self._present_versions() and torch.equal(self._sample, self._numbers()):
            return seen
        return [*seen, *(name for name in self._compare() if name not in seen)]

    def look(self) -> list[str]:
        """Look at all of each; return the names of those that are not what they were, which `moved` will tell again."""
        moved = self._compare()
        self._seen += moved
        return moved

    def _compare(self) -> list[str]:
        present = constants_of(self._module, ())
        moved = [n for n, c in self.constants.items() if n not in present or not c.is_that_of(present[n])]
        self._tensors = {name: present[name] for name in self.constants if name in present}
        for name in moved:
            if name in present:
                self.constants[name] = Constant.of(name, present[name])
            else:
                del self.constants[name]
        self._refresh()
        return moved

    def _refresh(self) -> None:
        dense = [v.detach() for v in self._tensors.values() if is_recordable(v)]
        flat = [v.view(-1) if v.is_contiguous() else v for v in dense if v.is_cpu and v.numel()]
        rows = [v if v.ndim == 1 else v[(0,) * (v.ndim - 1)] for v in flat]
        self._views = [v[:: max(1, len(v) // _SAMPLED)][:_SAMPLED] for v in rows]
        self._sample = self._numbers()
        self._versions = self._present_versions()

    def _numbers(self) -> Tensor:
        """Return some numbers of every tensor on the CPU, as they are now."""
        values = [torch.view_as_real(v) if v.is_complex() else v for v in self._views]
        values = [v.reshape(-1).to(torch.float64) for v in values]
        return torch.nan_to_num(torch.cat(values)) if values else torch.empty(0)

    def _present_versions(self) -> list[tuple[int, int]]:
        return [(v._version, v.data_ptr() if is_recordable(v) else 0) for v in self._tensors.values()]
