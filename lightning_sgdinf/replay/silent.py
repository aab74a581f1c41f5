"""Objects that stand for what has no part in a step: they take every call, and nothing comes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


class Silent:
    """Takes every call, attribute, item and ``with`` block in silence; each result is silent, too.

    Args:
        kind: Qualified name of the class it stands for, for ``isinstance``; counts where that class is loaded.
        known: Attributes that have a value.
    """

    def __init__(self, kind: str = "", **known: Any) -> None:
        self.__dict__.update(known)
        self.__dict__["_kind"] = kind

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return loaded_class(self.__dict__["_kind"]) or Silent

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Silent()

    def __setattr__(self, name: str, value: Any) -> None:
        """Forget it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return silence."""
        return Silent()

    def __getitem__(self, key: Any) -> Any:
        return Silent()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: Any) -> bool:
        return False

    def __enter__(self) -> Any:
        return Silent()

    def __exit__(self, *error: object) -> None:
        """Let errors pass."""


def loaded_class(path: str) -> type | None:
    """Return the class of that qualified name, if somebody has loaded its module."""
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return kind if isinstance(kind, type) else None
