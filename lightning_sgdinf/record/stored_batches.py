"""Encode batches as they arrive, with ids for their examples: for data that cannot be made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_sgdinf.log import Draw, encode_batch
from lightning_sgdinf.log.batch_bytes import row_count
from lightning_sgdinf.record.example_ids import integer_ids
from lightning_sgdinf.record.example_numbers import ExampleNumbers

ExampleKey = Callable[[Any], "Sequence[int] | Tensor"]
"""Returns the integer keys ``[B]``, from 0 on, of the examples of a collated batch."""


class BatchStore:
    """Encodes every batch of a run.

    Args:
        key: Names the examples of a batch; ``None`` for the loader's indices, or running numbers if it has none.
        problem: Called with a sentence when a batch cannot be encoded.
    """

    def __init__(self, key: ExampleKey | None, problem: Callable[[str], None]) -> None:
        self._key = key
        self._problem = problem
        self.numbered = 0  # examples that have got running numbers
        self._numbers = ExampleNumbers()

    @property
    def keyed(self) -> bool:
        """True if ids are keys of the user's."""
        return self._key is not None

    def begin_numbers(self, examples: int) -> None:
        """Let the examples of other data, if they change, be numbered on from a number of examples."""
        self._numbers.begin(examples)

    def take(self, batch: Any, draws: tuple[Draw, ...], *, version: int = 0, rank: int, world: int) -> tuple[Draw, ...]:
        """Return the draws of a batch, with the batch.

        Args:
            batch: As the Trainer got it.
            draws: Origin of its examples, as far as the loader said.
            version: Of the data, see `lightning_sgdinf.record.data_watch`.
            rank: This training process.
            world: Number of training processes, whose running numbers interleave.
        """
        if len(draws) > 1:
            self._problem(
                f"a batch comes from {len(draws)} loaders at once, and store_batches=True stores those of one. Combine "
                "the data sets and train with one loader"
            )
            return draws
        draw = draws[0] if draws else None
        ids = self._ids(batch, draw, version, rank, world)
        if ids is None:
            return ()
        try:
            data = encode_batch(batch)
        except TypeError as error:
            self._problem(
                "store_batches=True stores tensors, arrays, numbers, strings, and lists, tuples and dicts of them, but "
                f"{error}. Let collate_fn return such batches"
            )
            return draws
        loader = draw.loader if draw is not None else 0
        return (Draw(loader=loader, example_ids=ids, batch=lambda: data),)

    def _ids(self, batch: Any, draw: Draw | None, version: int, rank: int, world: int) -> np.ndarray | None:
        if self._key is not None:
            keys = self._key(batch)
            ids = integer_ids(keys.cpu() if isinstance(keys, Tensor) else keys)
            if ids is None or (len(ids) and ids.min() < 0):
                self._problem(
                    f"example_key returned {keys!r:.80}, expected a vector of integers from 0 on. Let it return one "
                    "key per example of the batch"
                )
                return None
            return ids
        if draw is not None:
            return self._known_ids(batch, draw, version, world)
        rows = row_count(batch)
        if rows is None:
            self._problem(
                "a batch holds no tensor whose first dimension would say how many examples it has. Pass example_key=, "
                "which says which they are"
            )
            return None
        first, self.numbered = self.numbered, self.numbered + rows
        return (first + np.arange(rows)) * world + rank

    def _known_ids(self, batch: Any, draw: Draw, version: int, world: int) -> np.ndarray | None:
        """Return indices where they are ids, and what examples of other data are known by."""
        ids = self._numbers.ids(version, draw.example_ids.tolist(), batch) if world == 1 or not version else None
        if ids is None:
            self._problem(
                "the training data changed, and examples of other data under the same indices cannot be told apart "
                "(a batch without a row for each, or several processes). Pass example_key=, which says which they are"
            )
            return draw.example_ids
        return ids
