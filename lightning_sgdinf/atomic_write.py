"""Write a file atomically: readers see the old one or the new one, never half of it; and one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_sgdinf.foreign_files import open_regular


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file in place of the one that may be there, and make missing folders.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # of its own, also among processes of other machines
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude other processes from the same path; the system releases the lock when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whatever else has that name, a link above all, is neither emptied nor waited for.
    descriptor = open_regular(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
