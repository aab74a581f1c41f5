"""Recorded batches made again: the same examples, collated the same way, under the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import DataMismatchError, UnsupportedRunError
from lightning_sgdinf.log import Draw, Header, MicroBatch, decode_batch
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.replay.loader_forms import ListedItems, by_item


class Loader(Protocol):
    """A data set and how its examples become a batch: all that replay needs of a data loader."""

    dataset: Any
    collate_fn: Any


class BatchSource:
    """Gives the batches of a recorded run.

    Args:
        loaders: The run's training loaders; only their data sets and ``collate_fn`` are used, order and batching come
            from the log. Not needed for batches that are stored in the log.
        header: The log's header, to compare the data sets' lengths with.
        check: Compare each batch with the recorded checksum.
        size: Number of training examples, where that is not the length of the first loader's data set.

    Raises:
        DataMismatchError: If the number of loaders or the length of a data set differs from the record.
    """

    def __init__(
        self, loaders: Sequence[Loader], header: Header, *, check: bool = True, size: int | None = None
    ) -> None:
        self._loaders = list(loaders)
        self._check = check
        self._size = size
        if size is None and header.datasets and len(header.datasets) != len(self._loaders):
            raise DataMismatchError(
                f"the run was trained with {len(header.datasets)} data loaders, got {len(self._loaders)}; pass the "
                "loaders of training"
            )
        for position, (loader, (kind, length)) in enumerate(zip(self._loaders, header.datasets, strict=False)):
            if length >= 0 and (size_now := len(loader.dataset)) != length:
                raise DataMismatchError(
                    f"loader {position}: the run was trained on {kind} with {length} examples, this data set "
                    f"({type(loader.dataset).__qualname__}) has {size_now}. Pass the data set of training, unshortened "
                    "and in the same order."
                )

    @property
    def size(self) -> int:
        """Return the number of training examples, ``N``."""
        return self._size if self._size is not None else len(self._loaders[0].dataset)

    def loader(self, position: int = 0) -> Loader:
        """Return a training loader, for examples of one's own choice.

        Raises:
            UnsupportedRunError: If none was given because the log holds the batches.
        """
        if not self._loaders:
            raise UnsupportedRunError(
                "the log holds the batches of training and nothing else was given, but this method makes batches of "
                "its own choice; pass the training loader, if its data set has __len__ and __getitem__"
            )
        return self._loaders[position]

    def batch(self, micro: MicroBatch, *, step: int) -> Any:
        """Return the collated batch, on the CPU, before the batch-transfer hooks.

        Raises:
            UnsupportedRunError: If the batch had no example ids or came from several loaders.
            DataMismatchError: If its checksum differs from the recorded one.
        """
        expect_one_loader(micro, step)
        draw = micro.draws[0]
        batch = self._produce(draw)
        if self._check and draw.digest is not None and (digest := batch_digest(batch)) != draw.digest:
            raise DataMismatchError(
                f"step {step}: the batch of examples {draw.example_ids[:4].tolist()}... differs from the one trained "
                f"on (checksum {draw.digest:08x} recorded, {digest:08x} now). Usual causes: another data set or order, "
                "another transform, or a data set with random numbers of its own (a generator kept as attribute) "
                "instead of torch's, numpy's or python's global one; record such a run with "
                "TrajectoryRecorder(store_batches=True)."
            )
        return batch

    def singles(self, micro: MicroBatch, *, step: int, places: Sequence[int] | None = None) -> list[Any]:
        """Return examples of a batch collated alone; ``None`` where nothing comes of one.

        Args:
            micro: As for `batch`.
            step: As for `batch`.
            places: Of the examples in the batch; all if ``None``.
        """
        choose = self._chooser(micro, step)
        return [choose([place]) for place in (range(len(micro.example_ids)) if places is None else places)]

    def repeated(self, micro: MicroBatch, place: int, *, step: int) -> Any:
        """Return a batch of the example at a place, as often as there were examples; ``None`` if it cannot be made."""
        return self._chooser(micro, step)([place] * len(micro.example_ids))

    def exchanged(self, micro: MicroBatch, others: Mapping[int, tuple[Draw, int]]) -> tuple[BatchSource, MicroBatch]:
        """Return a source whose recorded batch has other examples at some places, and the pass that has their ids.

        The examples that stay are made as they were then, and so is what the collate function draws.

        Args:
            micro: A recorded pass.
            others: By place, a recorded fetch and the place in it of the example that takes this one's.
        """
        draw = micro.draws[0]
        ids = draw.example_ids.copy()
        for place, (other, there) in others.items():
            ids[place] = other.example_ids[there]
        changed = replace(draw, example_ids=ids, digest=None)
        return _Exchanged(self, draw, changed, others), replace(micro, draws=(changed,))

    def _chooser(self, micro: MicroBatch, step: int) -> Callable[[list[int]], Any]:
        """Return what makes batches of the examples at some places of a recorded one, drawn as they were then."""
        draw = micro.draws[0]
        if draw.batch is not None or (draw.single and not draw.listed):
            whole = self.batch(replace(micro, draws=(replace(draw, digest=None),)), step=step)
            return lambda places: _rows_of(whole, places, len(micro.example_ids))
        items, collate = self._items(draw), self._loader_of(draw).collate_fn

        def choose(places: list[int]) -> Any:
            try:
                return collate([items[place] for place in places])
            except Exception:  # whatever a collate function does with what it cannot read
                return None

        return choose

    def _loader_of(self, draw: Draw) -> Loader:
        loader: Any = self.loader(draw.loader)
        return by_item(loader) if draw.listed and not isinstance(loader.dataset, ListedItems) else loader

    def _items(self, draw: Draw) -> list[Any]:
        loader = self._loader_of(draw)
        random_state.restore(draw.random)
        return fetch(loader.dataset, draw.example_ids.tolist())

    def _produce(self, draw: Draw) -> Any:
        if draw.batch is not None:
            return decode_batch(draw.batch())
        loader = self._loader_of(draw)
        if not draw.single or draw.listed:
            return loader.collate_fn(self._items(draw))
        random_state.restore(draw.random)
        return loader.collate_fn(loader.dataset[int(draw.example_ids[0])])


class _Exchanged(BatchSource):
    """See `BatchSource.exchanged`."""

    def __init__(self, source: BatchSource, was: Draw, now: Draw, others: Mapping[int, tuple[Draw, int]]) -> None:
        self.__dict__.update(source.__dict__)
        self._source, self._was, self._now, self._others = source, was, now, others

    def _items(self, draw: Draw) -> list[Any]:
        if not np.array_equal(draw.example_ids, self._now.example_ids):
            return self._source._items(draw)
        items = list(self._source._items(self._was))
        with random_state.preserved():
            places = list(self._others)
            new = fetch(self._loader_of(draw).dataset, [int(draw.example_ids[place]) for place in places])
        for place, item in zip(places, new, strict=True):
            items[place] = item
        return items

    def _produce(self, draw: Draw) -> Any:
        if draw.batch is None or not np.array_equal(draw.example_ids, self._now.example_ids):
            return super()._produce(draw)
        batch, count = self._source._produce(self._was), len(draw.example_ids)
        for place, (other, there) in self._others.items():
            batch = _with_row(batch, place, self._source._produce(other), there, count, len(other.example_ids))
        return batch


def _with_row(batch: Any, place: int, other: Any, there: int, count: int, other_count: int) -> Any:
    """Return a collated batch of ``count`` examples with a row of another one at a place."""

    def changed(value: Any, new: Any) -> Any:
        if not isinstance(value, (Tensor, np.ndarray)) or not value.ndim or len(value) != count:
            return value
        if len(new) != other_count or value[place].shape != new[there].shape:
            raise ValueError("the two batches have other shapes")
        value = value.clone() if isinstance(value, Tensor) else value.copy()
        value[place] = new[there]
        return value

    return tree_map(changed, batch, other)


def _rows_of(batch: Any, places: list[int], count: int) -> Any:
    """Return some rows of a collated batch; ``None`` if no tensor of it has a row for each of ``count`` examples."""
    if count == 1:
        return batch
    leaves = [v for v in tree_leaves(batch) if isinstance(v, (Tensor, np.ndarray)) and v.ndim and len(v) == count]
    if not leaves:
        return None
    return tree_map_only((Tensor, np.ndarray), lambda v: v[places] if v.ndim and len(v) == count else v, batch)


def fetch(dataset: Any, ids: Sequence[int]) -> list[Any]:
    """Return the examples with the given ids, all at once where the data set can, as a ``DataLoader`` does."""
    all_at_once = getattr(dataset, "__getitems__", None)
    return [dataset[i] for i in ids] if all_at_once is None else all_at_once(ids)


def expect_one_loader(micro: MicroBatch, step: int) -> None:
    """Refuse a batch whose examples have no ids, or come from several loaders.

    Raises:
        UnsupportedRunError: It is such a batch.
    """
    if len(micro.draws) == 1:
        return
    examples = f"examples from {len(micro.draws)} loaders at once"
    if not micro.draws:
        examples = "no example ids (an iterable data set, recorded without store_batches=True)"
    raise UnsupportedRunError(
        f"step {step} used {examples}; influence needs one map-style data loader. Combine the data sets "
        "(ConcatDataset) and train with one loader."
    )
