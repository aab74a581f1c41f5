"""Write a file atomically: readers see the old one or the new one, never half of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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
