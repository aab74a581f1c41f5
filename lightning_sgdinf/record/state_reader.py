"""Read the state of a module and its optimizer where it lies."""

from __future__ import annotations

import cmath
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf.bitwise import same_bits
from lightning_sgdinf.log import is_recordable
from lightning_sgdinf.record.structure import Structure
from lightning_sgdinf.state import Layout, ModelState


class StateReader:
    """Reads the state of a module and its optimizer where they lie.

    Walking a module costs more than reading its tensors, so their places are looked up by `refresh`: once per epoch,
    and when the module or the optimizer holds others than it did.

    The parameters of a state are those that the optimizer holds or has held, and those to `include`, in the module's
    order: one that joins the optimizer later is in the state from then on, one that leaves it stays.

    Args:
        module: The LightningModule.
        optimizer: Trains it.
        takes_states: Otherwise every state is read as one without tensors: another process records them.

    Attributes:
        unreadable: Keys of optimizer state that is neither a number nor a tensor that a log can hold.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, takes_states: bool = True) -> None:
        self._module = module
        self._optimizer = optimizer
        self._included: set[str] = set()
        self._takes_states = takes_states
        self._layout: Layout | None = None
        self._param_counts: dict[str, int] = {}
        self._seen: tuple[Any, ...] = ()
        self._views: dict[int, tuple[dict[str, Tensor], Layout, list[Tensor]]] = {}
        self.unreadable: set[str] = set()
        self.refresh()

    def use(self, optimizer: torch.optim.Optimizer) -> None:
        """Read the state of another optimizer of the same module from now on."""
        self._optimizer = optimizer
        self.refresh()

    def include(self, names: Iterable[str]) -> None:
        """Let parameters be part of the state that no optimizer holds."""
        self._included |= {*names}
        self.refresh()

    def refresh(self) -> None:
        """Look again which parameters, buffers and sub-modules there are."""
        self._structure = Structure.of(self._module, self._optimizer, self._included)
        self._included |= self.params.keys()
        self._seen = ()

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the state by name."""
        return self._structure.params

    @property
    def foreign(self) -> int:
        """Return the number of parameters that the optimizer holds and the module does not."""
        return self._structure.foreign

    def present_names(self) -> dict[int, str]:
        """Return the names of the parameters of the state by ``id``, as module and optimizer are now."""
        if not self._structure.is_that_of(self._optimizer):
            self.refresh()
        return self._structure.names

    def read(self) -> tuple[Layout, list[Tensor]]:
        """Return the present state: the layout, the same object while nothing but values changes, and the live
        tensors."""
        self.present_names()
        if not self._takes_states:
            return _NO_TENSORS, []
        tensors: list[Tensor] = [*self.params.values()]
        tensors += [b for _, owner, key in self._structure.buffers if (b := owner.get(key)) is not None]
        keys: list[str] = []
        state = self._optimizer.state
        for p in self.params.values():
            if p in state:
                for key, value in state[p].items():
                    if (tensor := self._tensor(key, value)) is not None:
                        keys.append(key)
                        tensors.append(tensor)
            keys.append("")
        seen = (keys, [t.shape for t in tensors], [t.dtype for t in tensors])
        layout = self._layout
        if layout is None or seen != self._seen:
            self._seen = seen
            fresh = Layout.of(self._state())
            if layout is None or layout != fresh:
                layout = self._layout = fresh
                self._param_counts = _param_counts(fresh)
        return layout, tensors

    def pack(self, layout: Layout, tensors: list[Tensor], flat: dict[str, Tensor]) -> None:
        """Copy what `read` gave into flat buffers."""
        if not tensors:
            return
        if all(t.is_cpu for t in tensors):
            with torch.no_grad():
                torch._foreach_copy_(self._views_of(layout, flat), tensors)  # pyright: ignore[reportPrivateImportUsage]
        else:
            layout.pack(self._state(), flat)

    def matches(self, layout: Layout, tensors: list[Tensor], flat: dict[str, Tensor]) -> bool:
        """Tell if what `read` gave is, bit by bit, what flat buffers hold. It says no where only packing would tell: of
        what lies elsewhere than on the CPU."""
        return all(t.is_cpu for t in tensors) and all(map(same_bits, tensors, self._views_of(layout, flat)))

    def finite(self, flat: dict[str, Tensor]) -> bool:
        """Tell if the parameters of a state packed by the present layout are all finite."""
        for dtype, count in self._param_counts.items():
            # Parameters come first in their buffer. A finite sum proves all finite; an infinite one may be an overflow.
            values = flat[dtype][:count]
            values = values.float() if values.dtype.itemsize == 1 else values  # of 8 bits there are no sums
            if not (cmath.isfinite(values.sum().item()) or torch.isfinite(values).all()):
                return False
        return True

    def eval_modules(self) -> tuple[str, ...]:
        """Return the names of the sub-modules that are in eval mode now."""
        return tuple([name for name, module in self._structure.modules if not module.training])

    def _state(self) -> ModelState:
        state = self._optimizer.state
        optimizer: dict[str, dict[str, Tensor]] = {}
        for name, p in self.params.items():
            if p in state:
                entries = {str(k): self._tensor(k, v) for k, v in state[p].items()}
                optimizer[name] = {k: v for k, v in entries.items() if v is not None}
        return ModelState(
            params=self.params,
            buffers={name: b for name, owner, key in self._structure.buffers if (b := owner.get(key)) is not None},
            optimizer={name: entries for name, entries in optimizer.items() if entries},
        )

    def _tensor(self, key: Any, value: Any) -> Tensor | None:
        if isinstance(value, Tensor) and is_recordable(value):
            return value
        if isinstance(value, (bool, int, float)):
            return torch.tensor(float(value), dtype=torch.float64)
        if value is not None:
            self.unreadable.add(str(key))
        return None

    def _views_of(self, layout: Layout, flat: dict[str, Tensor]) -> list[Tensor]:
        """Return the parts of flat buffers that are the layout's tensors. Buffers are used again and again."""
        known = self._views.get(id(flat))
        if known is not None and known[0] is flat and known[1] is layout:
            return known[2]
        remembered = [*self._views.values()]
        if len(remembered) >= _REMEMBERED_BUFFERS or any(known is not layout for _, known, _ in remembered):
            self._views.clear()  # those of another layout are not in use any more, and would keep their memory
        views = [value for *_, value in layout.unpack(flat).items()]
        self._views[id(flat)] = flat, layout, views
        return views


_REMEMBERED_BUFFERS = 16
_NO_TENSORS = Layout(())


def _param_counts(layout: Layout) -> dict[str, int]:
    counts: dict[str, int] = {}
    for spec in layout.specs:
        if spec.part == "param":
            counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.numel
    return counts
