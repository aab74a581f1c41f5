"""Take a file away from HDF5 when it must not write to it any more.

After a failed write HDF5 keeps what it could not write, tries again when the file is closed and when the interpreter
ends, and may crash then. In a forked child it would write into the parent's file. Letting the descriptor point to
memory that is thrown away ends both.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def large_files_allowed() -> Iterator[None]:
    """Let files, for a moment, grow as large as the process may allow itself (``ulimit -f``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def replace_by_copy(descriptor: int) -> None:
    """Let an open file be a copy in memory, which can be written and read until it is closed."""
    if not hasattr(os, "memfd_create"):
        redirect(descriptor)
        return
    copy = os.memfd_create("copy", os.MFD_CLOEXEC)
    try:
        size, place = os.fstat(descriptor).st_size, 0
        while place < size and (sent := os.sendfile(copy, descriptor, place, size - place)):
            place += sent
        os.dup2(copy, descriptor, inheritable=False)
    finally:
        os.close(copy)


def redirect(descriptor: int) -> None:
    """Let writes to a file go nowhere, but succeed."""
    nowhere = (
        os.memfd_create("discarded", os.MFD_CLOEXEC) if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    )
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def identity(file: int | Path) -> tuple[int, int]:
    """Return device and inode of a file, open or by name; zeros if there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
