"""Read the state of a module and its optimizer where it lies."""

from __future__ import annotations

import cmath
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf.record.bitwise import same_bits
from lightning_sgdinf.state import Layout, ModelState


class StateReader:
    """Reads the state of a module and its optimizer where they lie.

    Walking a module costs more than reading its tensors, so their places are looked up once per epoch, by `refresh`.

    Args:
        module: The LightningModule.
        optimizer: Trains it. Parameters are those that its groups hold, in the module's order; others are
            constants.
        takes_states: Otherwise every state is read as one without tensors: another process records them.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, takes_states: bool = True) -> None:
        self._module = module
        self._optimizer = optimizer
        self._takes_states = takes_states
        self._layout: Layout | None = None
        self._param_counts: dict[str, int] = {}
        self._seen: tuple[Any, ...] = ()
        self._views: dict[int, tuple[dict[str, Tensor], Layout, list[Tensor]]] = {}
        self.unreadable: set[str] = set()  # keys of optimizer state that is neither tensor nor number
        self.refresh()

    def refresh(self) -> None:
        """Look again which parameters, buffers and sub-modules there are."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        self._held = _group_sizes(self._optimizer)
        named = list(self._module.named_parameters())
        self.params = {name: p for name, p in named if id(p) in held}
        self.constants = {name: p for name, p in named if id(p) not in held}
        self.names = {id(p): name for name, p in self.params.items()}
        self.foreign = len(held) - len(self.params)
        self._modules = list(self._module.named_modules())
        owners = dict(self._modules)
        self._buffers = [
            (name, owners[name.rpartition(".")[0]]._buffers, name.rpartition(".")[2])
            for name, _ in self._module.named_buffers()
        ]
        self._seen = ()

    def read(self) -> tuple[Layout, list[Tensor]]:
        """Return the present state: the layout, the same object while nothing but values changes, and the live
        tensors."""
        if self._held != _group_sizes(self._optimizer):
            self.refresh()
        if not self._takes_states:
            return _NO_TENSORS, []
        tensors: list[Tensor] = [*self.params.values()]
        tensors += [b for _, owner, key in self._buffers if (b := owner.get(key)) is not None]
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
            if not (cmath.isfinite(values.sum().item()) or torch.isfinite(values).all()):
                return False
        return True

    def eval_modules(self) -> tuple[str, ...]:
        """Return the names of the sub-modules that are in eval mode now."""
        return tuple([name for name, module in self._modules if not module.training])

    def _state(self) -> ModelState:
        state = self._optimizer.state
        optimizer: dict[str, dict[str, Tensor]] = {}
        for name, p in self.params.items():
            if p in state:
                entries = {str(k): self._tensor(k, v) for k, v in state[p].items()}
                optimizer[name] = {k: v for k, v in entries.items() if v is not None}
        return ModelState(
            params=self.params,
            buffers={name: b for name, owner, key in self._buffers if (b := owner.get(key)) is not None},
            optimizer={name: entries for name, entries in optimizer.items() if entries},
        )

    def _tensor(self, key: Any, value: Any) -> Tensor | None:
        if isinstance(value, Tensor):
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
        if len(self._views) >= _REMEMBERED_BUFFERS:
            self._views.clear()
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


def _group_sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]
