"""Take a file away from HDF5 when it must not write to it any more.

After a failed write HDF5 keeps what it could not write, tries again when the file is closed and when the interpreter
ends, and may crash then. In a forked child it would write into the parent's file. Letting the descriptor point to
memory that is thrown away ends both.
"""

from __future__ import annotations

import os


def redirect(descriptor: int) -> None:
    """Let writes to a file go nowhere, but succeed."""
    nowhere = (
        os.memfd_create("discarded", os.MFD_CLOEXEC) if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    )
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def identity(descriptor: int) -> tuple[int, int]:
    """Device and inode of an open file; zeros if the descriptor is not open."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
