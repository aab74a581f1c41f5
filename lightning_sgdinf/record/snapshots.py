"""Which states of a run are stored, and how a state is taken from a module and its optimizer.

A `Keep` is one question: is the state before this step stored? The first state and the last are stored by every policy
but `Final`, which stores the last alone; of the states it leaves out the log keeps checksums.
"""

from __future__ import annotations

import cmath
import ctypes
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.record.budget import Budget, parse_budget
from lightning_sgdinf.state import Layout, ModelState


@runtime_checkable
class Keep(Protocol):
    """A policy that says which states are stored. ``str(keep)`` is what the header says and what `parse_keep` reads."""

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Whether the state before step ``index`` of ``epoch`` (both from 0) is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Store the states before steps ``0, k, 2k, ...``; with ``k = 1`` all of them. ``1/k`` of the bytes.

    Args:
        k: At least 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self.k, "every(k)")

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Whether ``index`` is a multiple of ``k``."""
        del epoch, max_epochs
        return index % self.k == 0

    def __str__(self) -> str:
        return "every_step" if self.k == 1 else f"every({self.k})"


@dataclass(frozen=True, slots=True)
class LastEpochs:
    """Store the states of the last ``n`` epochs that the Trainer's ``max_epochs`` announces, and the first state.

    Args:
        n: At least 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self.n, "last_epochs(n)")

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Whether ``epoch`` is one of the last ``n``, or ``index`` is 0."""
        return index == 0 or epoch >= max_epochs - self.n

    def __str__(self) -> str:
        return f"last_epochs({self.n})"


@dataclass(frozen=True, slots=True)
class Final:
    """Store the final state only: enough for what looks at the trained model alone, or retraces from the start."""

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Never."""
        del index, epoch, max_epochs
        return False

    def __str__(self) -> str:
        return "final"


def every(k: int) -> Every:
    """Store every ``k``-th state; the ones between are computed again when they are needed."""
    return Every(k)


def last_epochs(n: int) -> LastEpochs:
    """Store the states of the last ``n`` epochs."""
    return LastEpochs(n)


def parse_keep(keep: str | Keep | Budget) -> Keep | Budget:
    """The policy of a name: ``"every_step"``, ``"every(k)"``, ``"last_epochs(n)"`` or ``"final"``; or a budget,
    ``"budget:2GB"``.

    Raises:
        ConfigurationError: If there is no such policy.
    """
    if not isinstance(keep, str):
        if isinstance(keep, (Keep, Budget)):
            return keep
        raise ConfigurationError(f"keep= is a policy or its name, got {keep!r}. {_POLICIES}")
    if (budget := parse_budget(keep)) is not None:
        return budget
    if keep in ("every_step", "final"):
        return Every(1) if keep == "every_step" else Final()
    match = re.fullmatch(r"(every|last_epochs)\((\d+)\)", keep.replace(" ", ""))
    if match is None:
        raise ConfigurationError(f"unknown keep={keep!r}. {_POLICIES}")
    return (Every if match[1] == "every" else LastEpochs)(int(match[2]))


_POLICIES = "Use 'every_step', 'every(k)', 'last_epochs(n)', 'final', or a size such as 'budget:2GB'."


def _at_least_one(value: Any, what: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{what} needs an integer of at least 1, got {value!r}.")


class StateReader:
    """Reads the state of a module and its optimizer where they lie.

    Walking a module costs more than reading its tensors, so their places are looked up once per epoch, by `refresh`.

    Args:
        module: The LightningModule.
        optimizer: What trains it. Parameters are those that its groups hold, in the module's order; others are
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
        """The present state: the layout, the same object while nothing but values changes, and the live tensors."""
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
        """Copy what `read` gave into flat."""
        if not tensors:
            return
        if all(t.is_cpu for t in tensors):
            with torch.no_grad():
                torch._foreach_copy_(self._views_of(layout, flat), tensors)  # pyright: ignore[reportPrivateImportUsage]
        else:
            layout.pack(self._state(), flat)

    def matches(self, layout: Layout, tensors: list[Tensor], flat: dict[str, Tensor]) -> bool:
        """Whether what `read` gave is, bit by bit, what the flat hold. It says no where only packing would tell: of
        what lies elsewhere than on the CPU."""
        return all(t.is_cpu for t in tensors) and all(map(same_bits, tensors, self._views_of(layout, flat)))

    def finite(self, flat: dict[str, Tensor]) -> bool:
        """Whether the parameters of a state packed by the present layout are all finite."""
        for dtype, count in self._param_counts.items():
            # Parameters come first in their lane. A finite sum proves all finite; an infinite one may be an overflow.
            values = flat[dtype][:count]
            if not (cmath.isfinite(values.sum().item()) or torch.isfinite(values).all()):
                return False
        return True

    def eval_modules(self) -> tuple[str, ...]:
        """Names of the sub-modules that are in eval mode now."""
        return tuple([name for name, module in self._modules if not module.training])

    def _state(self) -> ModelState:
        state = self._optimizer.state
        optimizer: dict[str, dict[str, Tensor]] = {}
        for name, p in self.params.items():
            if p in state:
                found = {str(k): self._tensor(k, v) for k, v in state[p].items()}
                optimizer[name] = {k: v for k, v in found.items() if v is not None}
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
        """The parts of flat that belong to the layout's tensors. Lanes are used again and again."""
        known = self._views.get(id(flat))
        if known is not None and known[0] is flat and known[1] is layout:
            return known[2]
        if len(self._views) >= _REMEMBERED_LANES:
            self._views.clear()
        views = [value for *_, value in layout.unpack(flat).items()]
        self._views[id(flat)] = flat, layout, views
        return views


_REMEMBERED_LANES = 16
_NO_TENSORS = Layout(())


def changed_tensors(
    layout: Layout, flat: dict[str, Tensor], expected_layout: Layout, expected: dict[str, Tensor]
) -> tuple[str, ...]:
    """Labels of the tensors in which a packed state differs, bit by bit, from the packed state it should be."""
    if (layout is expected_layout or layout == expected_layout) and all(
        torch.equal(bits(flat[d]), bits(expected[d])) for d in flat
    ):
        return ()
    found = {spec.label: (spec, value) for spec, value in _unpacked(layout, flat)}
    wanted = {spec.label: (spec, value) for spec, value in _unpacked(expected_layout, expected)}
    return tuple(
        label
        for label in dict.fromkeys((*wanted, *found))
        if label not in found
        or label not in wanted
        or found[label][0] != wanted[label][0]
        or not torch.equal(bits(found[label][1]), bits(wanted[label][1]))
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on the CPU of one shape and dtype hold the same bits."""
    if one.is_contiguous() and other.is_contiguous():
        return not _compare(one.data_ptr(), other.data_ptr(), one.nbytes)  # several times as fast as torch.equal
    return torch.equal(bits(one), bits(other))


_compare = ctypes.PyDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_compare.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t


def bits(values: Tensor) -> Tensor:
    """The tensor's words as integers, so that NaN equals itself and 0.0 is not -0.0."""
    return values.contiguous().view(-1).view(_WORDS.get(values.dtype.itemsize, torch.uint8))


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def _param_counts(layout: Layout) -> dict[str, int]:
    counts: dict[str, int] = {}
    for spec in layout.specs:
        if spec.part == "param":
            counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.numel
    return counts


def _unpacked(layout: Layout, flat: dict[str, Tensor]) -> Iterable[tuple[Any, Tensor]]:
    values = [value for *_, value in layout.unpack(flat).items()]
    return zip(layout.specs, values, strict=True)


def _group_sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]
