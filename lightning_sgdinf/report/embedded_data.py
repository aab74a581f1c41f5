"""Arrays inside a page: compressed, as base64 in one piece of text, with an index that says what is where."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Reference: TypeAlias = "dict[str, Any]"
"""Place of an array: ``at`` and ``size`` in characters of the text, and its ``type``."""

_TYPES = {"u1", "u2", "u4", "i2", "f4", "f8"}
_FOR_SCRIPTS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class EmbeddedData:
    """Collects what a page is to hold; `html` writes it."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        """Characters so far."""
        return self._size

    def array(self, values: np.ndarray) -> Reference:
        """Keep an array of up to eight-byte numbers, flattened.

        Bytes of the same significance lie together, which makes numbers of like size compress well.
        """
        kind = values.dtype.str[1:]
        assert kind in _TYPES, f"no type {kind} in a page"
        data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
        planes = data.reshape(-1).view(np.uint8).reshape(-1, data.itemsize).T
        return {**self.blob(compressed(planes.tobytes())), "type": kind}

    def codes(self, values: Sequence[int] | np.ndarray, largest: int) -> Reference:
        """Keep whole numbers from 0 to ``largest`` in as few bytes as they need."""
        kind = np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.uint32
        return self.array(np.asarray(values, kind))

    def strings(self, values: Sequence[str]) -> Reference:
        """Keep strings."""
        return {**self.blob(compressed_strings(values)), "type": "strings"}

    def blob(self, content: bytes) -> Reference:
        """Keep bytes as they are."""
        text = base64.b64encode(content).decode()
        reference = {"at": self._size, "size": len(text)}
        self._parts.append(text)
        self._size += len(text)
        return reference

    def html(self, index: Any) -> str:
        """Return the two elements that hold it, which no string in the index can end."""
        return (
            f'<script type="application/json" id="explorer-index">{script_json(index)}</script>\n'
            f'<script type="text/plain" id="explorer-data">{"".join(self._parts)}</script>\n'
        )


def script_json(value: Any) -> str:
    """Return JSON in ASCII that may stand inside a script element: it has none of the signs that could end one."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_FOR_SCRIPTS)


def compressed(content: bytes) -> bytes:
    """Compress bytes in the form that browsers call "deflate"."""
    return zlib.compress(content, 9 if len(content) < 1 << 20 else 6)


def compressed_strings(values: Sequence[str]) -> bytes:
    """Compress strings as JSON."""
    return compressed(json.dumps(list(values), ensure_ascii=False).encode("utf-8", "replace"))


def characters(count: int) -> int:
    """Return the number of characters of base64 that so many bytes take."""
    return 4 * -(-count // 3)
