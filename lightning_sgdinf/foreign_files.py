"""Read files that somebody else may have written: regular ones alone, of bounded size, and nothing in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.plain_text import printable

if TYPE_CHECKING:
    import numpy as np

_CAREFULLY = os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_MAX_DOCUMENT_BYTES, _MAX_ENTRIES, _MAX_LISTS = 16 << 20, 2_000_000, 400_000
_MAX_ARRAYS_BYTES, _MAX_ARRAYS = 32 << 20, 1000
_MAX_DESCRIPTION_BYTES = 2 << 20  # of ten thousand tensors; reading it takes a second


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o644, *, follow: bool = False) -> int:
    """Return a descriptor of a regular file; never waits for a pipe.

    Args:
        path: File.
        flags: Of ``os.open``.
        mode: Of a file that is made.
        follow: Follow a link at its name: for files that the caller named.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    descriptor = os.open(path, flags | _CAREFULLY | (0 if follow else _NO_LINKS), mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is no regular file")
    return descriptor


def check_proportions(data: bytes) -> None:
    """Refuse a JSON document that would take up far more memory than any of ours.

    Raises:
        ValueError: It would.
    """
    if (
        len(data) > _MAX_DOCUMENT_BYTES
        or data.count(b",") > _MAX_ENTRIES
        or data.count(b"[") + data.count(b"{") > _MAX_LISTS
    ):
        raise ValueError(f"a document of {len(data)} bytes, {data.count(b',')} entries")


def read_document(path: Path, kind: type = object) -> Any:
    """Return the value of a JSON document.

    Args:
        path: File.
        kind: Expected type of the value.

    Raises:
        ConfigurationError: It is no such document, or cannot be read.
    """
    try:
        with _open(path, _MAX_DOCUMENT_BYTES) as file:
            data = file.read()
        check_proportions(data)
        value = json.loads(data.decode("utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"a {type(value).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        what = "a JSON document" + ("" if kind is object else f" of a {kind.__name__}")
        raise _unlike(path, what, error) from error
    return value


def read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, of 32 MiB together at most, once they are unpacked.

    Raises:
        ConfigurationError: It is none, or larger.
    """
    import numpy as np

    try:
        with _open(path, _MAX_ARRAYS_BYTES) as file:
            members = zipfile.ZipFile(file).infolist()
            size = sum(member.file_size for member in members)
            if size > _MAX_ARRAYS_BYTES or len(members) > _MAX_ARRAYS:
                raise ValueError(f"{len(members)} arrays of {size} bytes, unpacked")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                content = {name: arrays[name] for name in arrays.files}
            if odd := [name for name, value in content.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f"{odd[0]} is no array")
            return content
    except (
        OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile,
        AttributeError, TypeError,
    ) as error:  # fmt: skip
        raise _unlike(path, "an archive of arrays", error) from error


def read_tensors(path: Path) -> Any:
    """Return what ``torch.save`` wrote, if it is made of tensors and plain values.

    Raises:
        ConfigurationError: It is not, or cannot be read. Loading other objects would run code.
    """
    import torch

    try:
        with _open(path) as file:
            _refuse_packed(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
        what = f"{named[1]}, which is neither tensor nor plain value" if named else "something else, or is damaged"
        raise ConfigurationError(
            f"{printable(str(path))}: expected tensors and plain values alone, but it holds {what}. That is not loaded "
            "here, since loading it runs code; if you made the file and trust it, name the class with "
            "torch.serialization.add_safe_globals, otherwise put it aside"
        ) from error
    except Exception as error:  # torch's readers raise anything on what is no such file
        raise _unlike(path, "tensors that torch.save wrote", error) from error


def _open(path: Path, most: int | None = None) -> BinaryIO:
    """Open a regular file of so many bytes at most."""
    file = open(open_regular(path, follow=True), "rb")  # noqa: SIM115 - the caller closes it
    if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
        file.close()
        raise ValueError(f"{size} bytes")
    return file


def _refuse_packed(file: BinaryIO) -> None:
    """Refuse an archive that is larger unpacked, or describes more than tensors need: ``torch.save`` never packs."""
    archive = zipfile.ZipFile(file)
    size = sum(member.file_size for member in archive.infolist())
    if size > file.seek(0, io.SEEK_END):
        raise ValueError(f"{size} bytes, unpacked")
    told = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
    if (size := sum(member.file_size for member in told)) > _MAX_DESCRIPTION_BYTES:
        raise ValueError(f"{size} bytes that describe its tensors")
    for member in told:
        data = archive.read(member)
        if b"bytearray" in data or data.count(b"]") + data.count(b"}") > _MAX_LISTS:
            raise ValueError("a description of more than tensors and plain values")
    file.seek(0)


def _unlike(path: Path, expected: str, error: BaseException) -> ConfigurationError:
    got = printable(f"{type(error).__name__}: {error}")
    return ConfigurationError(
        f"{printable(str(path))}: expected {expected}, got something else ({got:.200}); remove it, or move it away"
    )
