"""Methods of the host's objects, replaced for a while on single instances and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Patches:
    """Replacements of bound methods by instance attributes; classes are never touched.

    An exception may come at any time: what is noted may not have been placed, and is undone all the same.
    """

    def __init__(self) -> None:
        self._placed: list[tuple[Any, str, Callable[..., Any], bool, Any]] = []
        self._last: list[Callable[[], None]] = []

    def place(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace ``owner.name`` by ``wrap(owner.name)``."""
        original = getattr(owner, name)
        replacement = wrap(original)
        was_own = name in vars(owner)
        self._placed.append((owner, name, replacement, was_own, original))
        setattr(owner, name, replacement)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Let something be done when everything has been put back."""
        self._last.append(action)

    def undo(self) -> None:
        """Put everything back, last first; what somebody else has since replaced is left to them."""
        while self._placed:
            owner, name, replacement, was_own, original = self._placed[-1]
            if vars(owner).get(name) is replacement:
                if was_own:
                    setattr(owner, name, original)
                else:
                    delattr(owner, name)
            self._placed.pop()
        while self._last:
            self._last.pop()()
