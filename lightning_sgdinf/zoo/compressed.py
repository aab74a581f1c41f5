"""Files as they are downloaded: plain, or compressed with gzip or xz."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_sgdinf.errors import ConfigurationError

SUFFIXES = ("", ".gz", ".xz")
_CHUNK = 1 << 14
_KINDS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "gzip": (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    "xz": (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ)),
}
_ENDINGS = {".gz": "gzip", ".xz": "xz"}


def existing(path: Path) -> Path | None:
    """Return the file itself, or the same with ``.gz`` or ``.xz`` at the end; ``None`` if there is none of them."""
    candidates = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def read_whole(path: str | Path) -> bytes:
    """Read all bytes of a file, decompressed; gzip and xz are recognised by content.

    Raises:
        ConfigurationError: The file is damaged or cut off; says where.
    """
    path = Path(path)
    data = path.read_bytes()
    for kind, (magic, decompressor) in _KINDS.items():
        if data.startswith(magic):
            return _decompressed(data, path, kind, decompressor)
    if expected := _ENDINGS.get(path.suffix):
        raise damaged(
            path, 0, f"expected {expected} data, which start with {_KINDS[expected][0].hex(' ')}, got {head(data)}"
        )
    return data


def damaged(path: str | Path, offset: int, what: str) -> ConfigurationError:
    """Return the error for a file whose bytes are not what they should be, to be raised.

    Args:
        path: The file.
        offset: Where in it, in bytes; for one that is compressed and whole, in what it unpacks to.
        what: What was expected and what is there.
    """
    return ConfigurationError(f"{path}, byte {offset:,}: {what}; the file is damaged, download it again")


def head(data: bytes) -> str:
    """Return the beginning of a file for messages."""
    return data[:6].hex(" ") or "nothing"


def _decompressed(data: bytes, path: Path, kind: str, decompressor: Callable[[], Any]) -> bytes:
    parts: list[bytes] = []
    position = 0
    while data[position:].strip(b"\0"):  # streams may follow one another, and zeros may follow the last
        stream = decompressor()
        while not stream.eof:
            chunk = data[position : position + _CHUNK]
            if not chunk:
                raise damaged(path, len(data), f"the file ends within its {kind} data")
            try:
                parts.append(stream.decompress(chunk))
            except (lzma.LZMAError, zlib.error) as error:
                raise damaged(path, position, f"broken {kind} data from here on or shortly after ({error})") from error
            position += len(chunk)
        position -= len(stream.unused_data)
    return b"".join(parts)
