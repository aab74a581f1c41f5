"""Data sets that scikit-learn fetches, where their own files are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_sgdinf.extras import require


def fetch(loader: str, *arguments: Any, data_home: Path, **options: Any) -> Any:
    """Call a function of ``sklearn.datasets`` that keeps what it fetched in a folder, and return its answer.

    Its errors come through (`OSError` without a network, `ValueError` for an answer that is no data set); folders that
    it made and left empty then go, so that a mistyped one is not there afterwards.

    Args:
        loader: Name of the function.
        arguments: Its own.
        data_home: Where to keep what was fetched; made if it is not there.
        options: Its own, too.
    """
    datasets = require("sklearn.datasets", extra="cli")
    with _no_new_empty_folders(data_home):
        return getattr(datasets, loader)(*arguments, data_home=data_home, n_retries=1, **options)


@contextmanager
def _no_new_empty_folders(root: Path) -> Iterator[None]:
    """Take away the folders at, under and above a path that were made meanwhile, but for those with files in them."""
    above = [folder for folder in (root, *root.parents) if not folder.exists()]
    kept = {folder for folder, _, _ in os.walk(root)}
    try:
        yield
    finally:
        under = [Path(folder) for folder, _, _ in os.walk(root, topdown=False) if folder not in kept]
        for folder in (*under, *above):
            with suppress(OSError):  # not empty, never made, or taken away with those under the root
                folder.rmdir()
