"""Plain attributes of a module that change while it trains: weights that are annealed, counters, switches.

A step may read numbers that hooks and callbacks set between steps. What has changed since the fit was set up is
recorded with every batch: numbers, strings, small tensors and small containers of numbers, of the module, its sub-
modules and the plain objects they hold. Larger tensors that change between steps are named without their values.

Most attributes are the same objects as the last time, which is all that is looked at then.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_sgdinf.log import Json, encode_attribute, is_plain

_FRAMEWORK = frozenset((*vars(nn.Module()), *vars(LightningModule()), "_current_fx_name", "_jit_is_scripting"))
_LIBRARIES = frozenset(
    (
        "torch",
        "lightning",
        "pytorch_lightning",
        "lightning_fabric",
        "lightning_utilities",
        "torchmetrics",
        "numpy",
        "builtins",
        "collections",
        "functools",
        "types",
        "typing",
        "logging",
        "pathlib",
        "datetime",
        "threading",
        "random",
        "lightning_sgdinf",
    )
)


class AttributeWatch:
    """Follows the plain attributes of a module.

    Args:
        module: The LightningModule; what its attributes are now is what changes are told from.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._changed: set[str] = set()
        self._names_others = False
        self._changed_once: set[str] = set()
        self._parts = {prefix: _Part(attributes) for prefix, attributes in _parts_of(module)}

    def read(self) -> dict[str, Json]:
        """Return the attributes that have changed since the fit was set up, by path, as they are now."""
        self._look()
        return {path: self._value(path) for path in sorted(self._changed) if self._is_there(path)}

    def read_all(self) -> dict[str, Json]:
        """Return all attributes that can be recorded; from now on others that change are named, too."""
        self._look()
        self._names_others = True
        return {
            prefix + name: encode_attribute(value)
            for prefix, part in self._parts.items()
            for name, value in part.attributes.items()
            if name not in _FRAMEWORK and is_plain(value)
        }

    def carried(self, before: Mapping[str, Json]) -> list[str]:
        """Return the paths of what a step has changed itself and may compute with the next time; counters are not.

        Args:
            before: What `read` gave before it.
        """
        return [
            path
            for path, value in self.read().items()
            if isinstance(value, (float, dict)) and before.get(path, value) != value
        ]

    def _look(self) -> None:
        """Find what has changed since the last time."""
        changes = {prefix: names for prefix, part in self._parts.items() if (names := part.changes())}
        for prefix, names in changes.items():
            attributes = self._parts[prefix].attributes
            for name in names:
                value = attributes.get(name)
                if is_plain(value) or self._changes_again(prefix + name, value):
                    self._changed.add(prefix + name)
        if changes:  # an object may have taken the place of another
            for prefix, attributes in _parts_of(self._module):
                known = self._parts.get(prefix)
                if known is None or known.attributes is not attributes:
                    self._parts[prefix] = _Part(attributes)
                    self._changed.update(
                        prefix + name for name, v in attributes.items() if name not in _FRAMEWORK and is_plain(v)
                    )

    def _changes_again(self, path: str, value: Any) -> bool:
        """Return true if something larger has changed before in training; what is made at first use has not."""
        if not self._names_others or not isinstance(value, (Tensor, np.ndarray)):
            return False
        again = path in self._changed_once
        self._changed_once.add(path)
        return again

    def _is_there(self, path: str) -> bool:
        prefix, name = _split(path)
        return name in self._parts[prefix].attributes

    def _value(self, path: str) -> Json:
        prefix, name = _split(path)
        value = self._parts[prefix].attributes[name]
        if is_plain(value):
            return encode_attribute(value)
        shape = f" of shape {list(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else ""
        return {"other": f"{type(value).__name__}{shape}"}


class _Part:
    """The attributes of one object, and what they were when they were looked at last."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self._remember()

    def changes(self) -> list[str]:
        """Return the names of what has changed since the last call."""
        present = self.attributes
        same = len(present) == len(self._values) and all(map(operator.is_, present.values(), self._values))
        if same and all(_content(present[name]) == before for name, before in self._contents.items()):
            return []
        known = dict(zip(self._names, self._values, strict=True))
        changed = [
            name
            for name, value in present.items()
            if name not in _FRAMEWORK and (name not in known or self._differs(name, known[name], value))
        ]
        self._remember()
        return changed

    def _remember(self) -> None:
        self._names, self._values = tuple(self.attributes), tuple(self.attributes.values())
        self._contents = {
            name: _content(value)
            for name, value in self.attributes.items()
            if isinstance(value, (Tensor, np.ndarray, list, dict)) and name not in _FRAMEWORK
        }

    def _differs(self, name: str, before: Any, value: Any) -> bool:
        if isinstance(value, (list, dict)):
            # One that grows keeps outputs for later: nobody anneals by that.
            past, present = self._contents.get(name), _content(value)
            return past != present and _length(past) == _length(present) != 0
        if before is value:
            return name in self._contents and self._contents[name] != _content(value)
        return (
            type(before) is not type(value)
            or not is_plain(value)
            or encode_attribute(before) != encode_attribute(value)
        )


def _content(value: Any) -> Any:
    """Return something that changes when the content of a value does, as far as a glance tells."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    return encode_attribute(value)


def _length(encoded: Any) -> int:
    return len(next(iter(encoded.values()))) if encoded else 0


def _parts_of(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield prefix and attributes of a module, its sub-modules, and the plain objects that they hold."""
    for path, part in module.named_modules():
        if isinstance(part, (Metric, MetricCollection)) or type(part).__name__ == "OptimizedModule":
            continue
        prefix = "".join(f"{name}." for name in path.split(".") if name and name != "_orig_mod")
        yield prefix, vars(part)
        for name, value in list(vars(part).items()):
            if name not in _FRAMEWORK and _is_object(value):
                yield f"{prefix}{name}.", vars(value)


def _is_object(value: Any) -> bool:
    """Return true for an object of a class of somebody's own."""
    if isinstance(value, (type, nn.Module, Tensor)) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return type(value).__module__.partition(".")[0] not in _LIBRARIES


def _split(path: str) -> tuple[str, str]:
    prefix, dot, name = path.rpartition(".")
    return prefix + dot, name
