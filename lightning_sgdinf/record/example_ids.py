"""Example ids that travel with their batch, through any ``DataLoader``.

An id is the index that the loader asked its data set for. It is noted in the process that produces the batch, together
with the state of that process's random generators just before, and rides with the collated batch through workers,
queues, prefetching and out-of-order delivery until the training process takes it off again. So there is nothing to
align, whatever the sampler, and the loader draws exactly the random numbers it would have drawn. The user's loader
object is not touched: what runs is a shallow copy whose data set and ``collate_fn`` are wrapped.

Ids are those of the loader's own data set: of a ``Subset`` they are positions in the subset.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.random_state import RandomState
from lightning_sgdinf.record.random_watch import RandomWatch


class TrackedBatch:
    """A collated batch and its origin.

    It is no node of any pytree, so that code which maps over batches sees one leaf.

    Attributes:
        batch: As ``collate_fn`` returned it.
        token: Names the loader.
        ids: int64 ``[B]``; ``None`` if the loader's indices are not integers.
        random: The producing process's generators just before the first example was fetched.
        digest: Checksum of the batch, if it was asked for.
        single: The loader has ``batch_size=None``.
        listed: Its sampler yielded a list of indices.
        failure: What went wrong in tracking it; empty if nothing did.
    """

    def __init__(
        self,
        batch: Any,
        *,
        token: int,
        ids: np.ndarray | None,
        random: RandomState,
        digest: int | None,
        single: bool,
        listed: bool = False,
        failure: str = "",
    ) -> None:
        self.batch = batch
        self.token = token
        self.ids = ids
        self.random = random
        self.digest = digest
        self.single = single
        self.listed = listed
        self.failure = failure

    def pin_memory(self, device: str | None = None) -> TrackedBatch:
        """Pin the batch; the loader's pinning thread calls this on any batch with such a method."""
        self.batch = pin_memory(self.batch, device)
        return self


class _Tag:
    """Ids and random states that the fetching half of a loader leaves for the collating half, in the same process."""

    def __init__(self, token: int, *, digest: bool, watch: RandomWatch) -> None:
        self._token = token
        self._digest = digest
        self._watch = watch
        self._noted: tuple[np.ndarray | None, RandomState] | None = None
        self._listed = False
        self._failure = ""

    def write(self, indices: Any) -> None:
        """Note indices and generators, just before the first example is fetched."""
        self._noted, self._listed = (None, {}), isinstance(indices, list)
        try:
            self._noted = integer_ids(indices), self._watch.capture(devices=get_worker_info() is None)
        except Exception as error:  # told where it ends the recording, and not the worker
            self._failure = _said(error)

    def attach(self, batch: Any, *, single: bool) -> Any:
        """Return the batch with what was noted for it; as it is, if nothing was (somebody else called
        ``collate_fn``)."""
        if self._noted is None:
            return batch
        (ids, random), self._noted = self._noted, None
        digest = None
        try:
            digest = batch_digest(plain_batch(batch)) if self._digest else None
        except Exception as error:
            self._failure = _said(error)
        return TrackedBatch(
            batch,
            token=self._token,
            ids=ids,
            random=random,
            digest=digest,
            single=single,
            listed=single and self._listed,
            failure=self._failure,
        )


class TaggedDataset(Dataset):
    """The user's data set; a tag notes what is fetched from it.

    Everything but fetching goes to the data set itself, setting attributes included.
    """

    def __init__(self, dataset: Any, tag: _Tag, single: bool) -> None:
        self.__dict__.update(_dataset=dataset, _tag=tag, _single=single)

    def __reduce__(self) -> tuple[Any, ...]:
        return TaggedDataset, (self._dataset, self._tag, self._single)

    @property
    def __class__(self) -> type:  # isinstance(loader.dataset, MyDataset) stays true
        return type(self.__dict__["_dataset"])

    def __getattr__(self, name: str) -> Any:
        if name in ("_dataset", "_tag", "_single"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if self._single:
            self._tag.write(index)
        return self._dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> Any:
        self._tag.write(indices)
        fetch = getattr(self._dataset, "__getitems__", None)
        return fetch(indices) if fetch else [self._dataset[i] for i in indices]


class TaggedCollate:
    """The user's ``collate_fn``; what it returns carries the tag."""

    def __init__(self, collate: Callable[[Any], Any], tag: _Tag, single: bool) -> None:
        self._collate = collate
        self._tag = tag
        self._single = single

    def __call__(self, examples: Any) -> Any:
        """Return the collated batch with its tag."""
        return self._tag.attach(self._collate(examples), single=self._single)


def track(
    loader: DataLoader, token: int, *, digest: bool, watch: RandomWatch, sink: deque[TrackedBatch] | None = None
) -> DataLoader:
    """Return a shallow copy of a map-style loader whose batches carry their ids.

    Args:
        loader: Left as it is. Sampler, generator and worker settings are shared with the copy.
        token: Names the loader on its batches.
        digest: Compute a checksum of each batch, where it is produced.
        watch: Reads the random states of batches produced in this process.
        sink: If given, the copy's iterator yields plain batches and puts the tracked ones here; needed if user code
            takes batches from the loader itself.
    """
    single = loader.batch_sampler is None
    tag = _Tag(token, digest=digest, watch=watch)
    twin = copy.copy(loader)
    # DataLoader.__setattr__ forbids these names after construction.
    attributes = twin.__dict__
    attributes["_iterator"] = None
    attributes[_ORIGINAL] = loader
    attributes["dataset"] = TaggedDataset(loader.dataset, tag, single)
    attributes["collate_fn"] = TaggedCollate(loader.collate_fn, tag, single)
    if sink is not None:
        make_iterator = twin._get_iterator
        attributes["_get_iterator"] = lambda: _unloading(make_iterator(), sink)
    return twin


_ORIGINAL = "_sgdinf_tracked"


def tracked_loader(twin: Any) -> Any:
    """Return the loader that a twin is a copy of, another twin if recorders are several; ``None`` if it is none."""
    return getattr(twin, "__dict__", {}).get(_ORIGINAL)


def plain_batch(batch: Any) -> Any:
    """Return the batch that was tracked, by however many recorders."""
    while isinstance(batch, TrackedBatch):
        batch = batch.batch
    return batch


def _unloading(iterator: Any, sink: deque[TrackedBatch]) -> Any:
    """Return a loader's iterator, made to yield plain batches."""
    fetch = iterator._next_data
    sink.clear()

    def next_data() -> Any:
        batch = fetch()
        if not isinstance(batch, TrackedBatch):
            return batch
        sink.append(batch)
        return batch.batch

    iterator._next_data = next_data
    return iterator


def _said(error: Exception) -> str:
    return f"in the data loader, {type(error).__qualname__}: {error}"


def integer_ids(indices: Any) -> np.ndarray | None:
    """Return indices as int64 ``[B]``; ``None`` if they are not integers."""
    try:
        ids = np.atleast_1d(np.asarray(indices))
    except (ValueError, TypeError, RuntimeError):
        return None
    return ids.astype(np.int64) if ids.ndim == 1 and ids.dtype.kind in "iu" else None
