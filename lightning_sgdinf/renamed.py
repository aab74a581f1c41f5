"""Names that have moved, given for one more release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that looks up names where they have moved to, with a ``DeprecationWarning``.

    Args:
        module: The module's ``__name__``.
        homes: Old name to the dotted path of the new one.
    """

    def look_up(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", homes[name])
        home, _, own = homes[name].rpartition(".")
        return getattr(importlib.import_module(home), own)

    return look_up


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that something the caller typed has another name now.

    Args:
        old: What was typed.
        new: What to type.
        stacklevel: As for ``warnings.warn``, from the caller of this function.
    """
    warnings.warn(
        f"{old} is now {new}; the old name goes with the next release", DeprecationWarning, stacklevel=stacklevel + 1
    )
