"""The few HDF5 operations that a log needs; their errors name the file and the object."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
from h5py._objects import phil
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import LogCorruptError, LogError, LogNotFoundError, LogVersionError
from lightning_sgdinf.foreign_files import open_regular
from lightning_sgdinf.log.descriptors import identity, large_files_allowed, redirect, replace_by_copy
from lightning_sgdinf.log.file_objects import ReadFile, WrittenFile
from lightning_sgdinf.log.superblock import SIZE, check, repaired
from lightning_sgdinf.plain_text import printable

LIBVER = ("v110", "v110")  # checksummed metadata, and what a single writer with readers needs

_UNWRITTEN_BYTES = 64 << 20
_MAX_CHUNK_BYTES = 4 << 20
_DAMAGE = (
    OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, UnicodeError, ArithmeticError,
    MemoryError, struct.error,
)  # fmt: skip


_unclosed: set[tuple[int, int]] = set()
"""Files that HDF5 could not close. It takes the next file that gets the same number in the file system for them."""


def holds_lock() -> bool:
    """Tell if this thread is inside of h5py, so that no other thread gets on with any file."""
    return phil._is_owned()


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into `LogCorruptError`."""
    try:
        yield
    except LogError:
        raise
    except _DAMAGE as error:
        reason = printable(" ".join(str(error).split()))
        raise LogCorruptError(
            f"{path}: {what} cannot be read ({type(error).__name__}: {reason}); the file is damaged, restore a copy"
        ) from error


@contextmanager
def skeleton(path: Path, format_name: str) -> Iterator[h5py.File]:
    """Make a new file whose objects are made in memory, and written when all are there; never replaces one.

    Where HDF5 itself makes objects on a full disk, it ends the process.
    """
    name = f"skeleton-{uuid4().hex}"  # of its own: several logs may be written in one process
    with h5py.File(name, "x", driver="core", backing_store=False, libver=LIBVER) as file:
        file.attrs["format"] = format_name
        yield file
        file.flush()
        image = file.id.get_file_image()
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(image)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def open_growing(path: Path) -> h5py.File:
    """Open a skeleton for writing while others may read."""
    if identity(path) in _unclosed:
        again = path.with_name(f"tmp-again-{path.name}")
        again.write_bytes(path.read_bytes())  # while the number is taken, so it gets another one
        again.replace(path)
    file = h5py.File(path, "r+", libver=LIBVER, locking=False)
    try:
        file.swmr_mode = True
    except BaseException:
        discard(file)
        raise
    return file


@contextmanager
def new_file(path: Path, format_name: str) -> Iterator[h5py.File]:
    """Make a file in one go, byte by byte by our own writes; if one fails, nothing is left of it.

    Never replaces a file. When this is left without an error, the file is on the disk.
    """
    raw = WrittenFile(path)
    try:
        with h5py.File(raw, "w", libver=LIBVER) as file:
            file.attrs["format"] = format_name
            yield file
        raw.check()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        raw.close()


def close_flushed(file: h5py.File, path: Path) -> None:
    """Close a file that was just flushed, without another write by HDF5: one that failed now would end the process.

    Raises:
        OSError: What is left to write, the superblock and the end of the file, could not be written.
    """
    size = file.id.get_filesize()
    redirect(file.id.get_vfd_handle())
    file.close()
    descriptor = open_regular(path, os.O_RDWR)
    try:
        block, _ = repaired(os.pread(descriptor, SIZE, 0), size)
        os.ftruncate(descriptor, size)
        if os.pwrite(descriptor, block, 0) != len(block):
            raise OSError(f"the superblock of {path.name} was not written whole")
    except ValueError as error:
        raise OSError(str(error)) from error
    finally:
        os.close(descriptor)


def discard(file: h5py.File) -> None:
    """Close a file that cannot be written, so that HDF5 does not try again when the interpreter ends.

    What it reads back meanwhile must be there, or it does not close the file.
    """
    number = None
    try:
        descriptor = file.id.get_vfd_handle()
        number = identity(descriptor)
        with large_files_allowed():  # those in memory count, too
            try:
                replace_by_copy(descriptor)
            except OSError:
                redirect(descriptor)
            file.close()
    except Exception:  # whatever HDF5 says
        if number is not None:
            _unclosed.add(number)


class ReadHdf5(h5py.File):
    """A file that is read through a file object of ours.

    Args:
        raw: The file object.
    """

    def __init__(self, raw: ReadFile) -> None:
        super().__init__(raw, "r")
        self._raw: ReadFile | None = raw

    def fileno(self) -> int:
        """Return the descriptor; -1 once the file is closed."""
        return -1 if self._raw is None else self._raw.fileno()

    def close(self) -> None:
        """Close the file; harmless when done twice."""
        self._raw = None
        super().close()


def open_file(path: Path, format_name: str, *, sealed: bool = True) -> ReadHdf5:
    """Open a file for reading, and nothing else: no link at its name is followed, no pipe waited for.

    Args:
        path: File.
        format_name: Format it must have.
        sealed: Its writer closed it; otherwise it is read as if it had.

    Raises:
        LogNotFoundError: There is no such file.
        LogVersionError: The file says another format, or none.
        LogCorruptError: It is no readable HDF5 file, or no regular file.
    """
    if not os.path.lexists(path):
        raise LogNotFoundError(f"{path}: no such file, expected one of a log; restore it from a copy")
    with reading(path, "the file"):
        file = ReadHdf5(_plain(path) if sealed else _repaired(path))
    try:
        with reading(path, "attribute format"):
            present = file.attrs.get("format")
        if not isinstance(present, str) or present != format_name:
            raise LogVersionError(f"{path}: {_other_format(present, format_name)}")
    except BaseException:
        file.close()
        raise
    return file


def _plain(path: Path) -> ReadFile:
    """Open a file that was closed."""
    file = ReadFile(path)
    try:
        check(_head(file))
    except BaseException:
        file.close()
        raise
    return file


def _head(file: ReadFile) -> bytes:
    head = bytearray(SIZE)
    file.seek(0)
    file.readinto(memoryview(head))
    return bytes(head)


def _repaired(path: Path) -> ReadFile:
    """Open a file that was never closed; it stays as it is."""
    with ReadFile(path) as plain:
        block, end = repaired(_head(plain), plain.size())
    return ReadFile(path, head=block, size=end)


def _other_format(present: object, format_name: str) -> str:
    """Return the advice about a file of another format."""
    if not isinstance(present, str):
        return f"the file says no format, expected {format_name!r}; it is no part of a log, move it elsewhere"
    kind, _, version = format_name.partition("/")
    theirs, _, number = present.partition("/")
    later = theirs == kind and number.isdecimal() and len(number) < 9 and int(number) > int(version)
    advice = "a later release wrote it: update this one" if later else "use the release that wrote it"
    return f"the file has format {present!r:.80}, this release reads {format_name!r}; {advice}"


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset by name, whose data are in this file.

    Raises:
        KeyError: There is none.
        TypeError: Something else has that name.
        ValueError: Its data would come from elsewhere.
    """
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        if not isinstance(link := file.get("/".join(parts[:end]), getlink=True), h5py.HardLink):
            raise KeyError(f"{link} is there, expected a dataset in this file")
    stored = file[name]
    if not isinstance(stored, h5py.Dataset):
        raise TypeError(f"{stored} is there, expected a dataset")
    properties = stored.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise ValueError(f"{name} refers to other files")
    return stored


def integer(item: Any, name: str) -> int:
    """Return an attribute of a file, group or dataset that is an integer."""
    return int(item.attrs[name])


def write_document(file: h5py.File, name: str, data: bytes) -> None:
    """Store a byte string with its CRC-32 in attribute ``crc32``."""
    created = file.create_dataset(name, data=np.frombuffer(data, np.uint8), track_times=False)
    created.attrs["crc32"] = np.uint32(crc32(data))


def read_document(file: ReadHdf5, name: str, path: Path) -> bytes:
    """Read what `write_document` stored, and check it."""
    data = read_column(file, name, path, "|u1").tobytes()
    with reading(path, f"attribute crc32 of {name}"):
        recorded = integer(file[name], "crc32")
    if crc32(data) != recorded:
        raise LogCorruptError(f"{path}: {name} differs from its checksum; restore the file from a copy")
    return data


def read_column(
    file: ReadHdf5, name: str, path: Path, dtype: str, columns: int | None = None, *, sealed: bool = True
) -> np.ndarray:
    """Read a whole unfiltered dataset, after its claims were compared with the bytes that are there.

    Args:
        file: Open file.
        name: Dataset.
        path: File, for errors.
        dtype: Type it must have.
        columns: Size of the second dimension; ``None`` for a vector.
        sealed: See `checked_dataset`.
    """
    with reading(path, f"dataset {name}"):
        return checked_dataset(file, name, dtype, columns, sealed=sealed)[()]


def checked_dataset(
    file: ReadHdf5,
    name: str,
    dtype: str,
    columns: int | None = None,
    *,
    sealed: bool = True,
    filters: Sequence[int] = (),
) -> h5py.Dataset:
    """Return a dataset of the type, shape, filters and allocation that the format demands.

    A damaged header may claim any number of rows, and reading would allocate them. So the bytes that are claimed must
    not be more than the bytes that are there: those that HDF5 has allocated, for filtered data those of whole chunks.

    Args:
        file: Open file.
        name: Dataset.
        dtype: Type it must have.
        columns: Size of the second dimension; ``None`` for a vector.
        sealed: The file was finished; otherwise rows may be announced whose bytes never came.
        filters: Numbers of the filters that it may have, all of them, or none of them.

    Raises:
        ValueError: It has others.
        KeyError: There is none.
    """
    stored = dataset(file, name)
    expected = (columns,) if columns is not None else ()
    if stored.dtype != np.dtype(dtype) or stored.shape[1:] != expected:
        raise ValueError(f"{stored} is there, expected {dtype} of shape (n, {', '.join(map(str, expected))})")
    properties = stored.id.get_create_plist()
    numbers = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    if numbers and numbers != tuple(filters):
        raise ValueError(f"filters {numbers} are there, expected {tuple(filters)}")
    chunk = prod(stored.chunks or (0,)) * stored.dtype.itemsize
    if chunk > _MAX_CHUNK_BYTES:
        raise ValueError(f"{name} has chunks of {chunk} bytes")
    if not sealed:
        there = stored.nbytes if numbers else file.id.get_filesize() + _UNWRITTEN_BYTES
    elif numbers:
        there = stored.id.get_num_chunks() * chunk
    else:
        there = min(stored.id.get_storage_size(), file.id.get_filesize())
    if stored.nbytes > there:
        raise ValueError(f"{name}: {stored.nbytes} bytes are claimed and {there} are there")
    return stored


class Growing:
    """A dataset that grows by rows; below h5py's indexing, which would cost more than the writing.

    Args:
        dataset: Empty, and unlimited in its first dimension.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._id, self._row = dataset.id, dataset.shape[1:]
        self.dtype, self.length = dataset.dtype, int(dataset.shape[0])

    def append(self, rows: np.ndarray) -> None:
        """Add rows at the end, C-contiguous and of the dataset's type."""
        count = len(rows)
        if count:
            self.resize(self.length + count)
            self._id.write(*_selection(self._id, self.length - count, 0, (count, *self._row)), rows)

    def write(self, row: int, column: int, part: np.ndarray) -> None:
        """Write a part of rows that are there, from a row and a column on."""
        self._id.write(*_selection(self._id, row, column, part.shape), part)

    def resize(self, length: int) -> None:
        """Change the number of rows."""
        self._id.set_extent((length, *self._row))
        self.length = length


def read_rows(dataset: h5py.Dataset, start: int, out: np.ndarray, column: int = 0) -> None:
    """Fill ``out``, C-contiguous and of the dataset's type, with the rows from ``start`` on, from a column on."""
    dataset.id.read(*_selection(dataset.id, start, column, out.shape), out)


def _selection(
    dataset: h5py.h5d.DatasetID, start: int, column: int, shape: tuple[int, ...]
) -> tuple[h5py.h5s.SpaceID, h5py.h5s.SpaceID]:
    """Return memory and file space of a block of rows."""
    space = dataset.get_space()
    space.select_hyperslab((start, *(column for _ in shape[1:])), shape)
    return h5py.h5s.create_simple(shape), space
