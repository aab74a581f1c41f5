"""The changes measured so far, kept on disk so that a long measurement can go on where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import read_arrays, write_arrays

KIND = "sgdinf-truth-partial/1"
"""Name of the file's format."""
SAVE_EVERY = 5.0
"""Seconds between two writings."""


class Ledger:
    """Changes measured so far.

    Args:
        path: Where they are kept; ``None`` for nowhere. What is there already is taken over.
        key: What is measured; a file of another measurement is refused.
        sets: ``M``.
        queries: ``Q``.
        may_grow: The file may have been begun with another number of sets; it has ``M`` of them at least then.

    Attributes:
        values: float64 ``[M, Q]``.
        done: True where a set is measured, bool ``[M]``.
        steps: Training steps that it took.
        seconds: Wall time that it took before this ledger was opened.

    Raises:
        ConfigurationError: The file is of another measurement.
    """

    def __init__(self, path: str | Path | None, key: str, sets: int, queries: int, *, may_grow: bool = False) -> None:
        self._path = None if path is None else Path(path)
        self._key = hashlib.sha256(key.encode()).hexdigest()
        self.values = torch.zeros(sets, queries, dtype=torch.float64)
        self.done = np.zeros(sets, dtype=bool)
        self.steps, self.seconds = 0, 0.0
        self._opened = self._saved = time.monotonic()
        if self._path is not None and self._path.exists():
            arrays, attributes = read_arrays(self._path, kind=KIND)
            if attributes.get("key") != self._key:
                raise ConfigurationError(
                    f"{self._path} keeps the runs of another measurement (another record, query, choice of examples or "
                    "precision); give another path, or delete it"
                )
            rows = np.size(arrays["done"]) if may_grow and "done" in arrays else sets
            _check_forms(self._path, arrays, rows, queries)
            known, missing = torch.from_numpy(np.array(arrays["values"])), max(0, sets - rows)
            self.values = torch.cat([known, torch.zeros(missing, queries, dtype=torch.float64)])
            self.done = np.concatenate([arrays["done"], np.zeros(missing, dtype=bool)])
            self.steps, self.seconds = int(arrays["steps"]), float(arrays["seconds"])

    def add(self, numbers: Sequence[int], values: Tensor, steps: int) -> None:
        """Accumulate the changes ``[K, Q]`` of some sets."""
        self.values[list(numbers)] = values
        self.done[list(numbers)] = True
        self.steps += steps
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the changes measured so far."""
        if self._path is None:
            return
        self._saved = time.monotonic()
        arrays = {
            "values": self.values.numpy(),
            "done": self.done,
            "steps": np.int64(self.steps),
            "seconds": np.float64(self.seconds + self._saved - self._opened),
        }
        write_arrays(self._path, {n: np.asarray(a) for n, a in arrays.items()}, {"key": self._key}, kind=KIND)


def _check_forms(path: Path, arrays: Mapping[str, np.ndarray], sets: int, queries: int) -> None:
    forms = {"values": ((sets, queries), "f8"), "done": ((sets,), "b1"), "steps": ((), "i8"), "seconds": ((), "f8")}
    for name, (shape, kind) in forms.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype.str[1:] != kind:
            raise ConfigurationError(f"{path}: expected {name} of shape {list(shape)}; give another path, or delete it")
