"""The training loaders of a run: made to carry ids when the Trainer prepares them, relieved of them when it takes a
batch.

A loader is wrapped at ``strategy.process_dataloader``, within ``fit_loop.setup_data``: the last thing the Trainer calls
before it starts iterating, when any distributed sampler is already in place. A batch is unwrapped at
``precision_plugin.convert_input``, the first thing the Trainer calls on a training batch. Both are plain methods of
plugins that exist in every run, and no callback hook comes early enough for either: workers start before
``on_train_start``.
"""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.data import DataLoader, IterableDataset

from lightning_sgdinf.log import Draw
from lightning_sgdinf.record.data_watch import DataWatch
from lightning_sgdinf.record.example_ids import TrackedBatch, plain_batch, track, tracked_loader
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.patches import Patches
from lightning_sgdinf.record.random_watch import RandomWatch
from lightning_sgdinf.record.stored_batches import BatchStore

STORE_BATCHES = "TrajectoryRecorder(store_batches=True)"


def takes_iterator(module: Any) -> bool:
    """Tell if ``training_step`` takes the loader's iterator and fetches by itself."""
    return "dataloader_iter" in inspect.signature(module.training_step).parameters


def untracked(batch: Any, *, joined: bool) -> tuple[Any, list[TrackedBatch]]:
    """Return a batch as the loaders made it, and what was tracked of it: one per loader that has a part in it.

    Args:
        batch: As the Trainer got it.
        joined: It may be a tuple, list or dict with one leaf per loader.
    """
    tracked: list[TrackedBatch] = []

    def unload(one: TrackedBatch) -> Any:
        tracked.append(one)
        return one.batch

    if isinstance(batch, TrackedBatch):
        return unload(batch), tracked
    return tree_map_only(TrackedBatch, unload, batch) if joined else batch, tracked


class LoaderTap:
    """Ids and random states of every training batch, as the Trainer fetches it.

    Args:
        digest: Compute a checksum of each batch.
        watch: Reads the random states of this process.
        guard: Runs what the Trainer's methods call.
        remark: Called with a sentence about something to know.
        problem: Called with a sentence when a loader cannot give ids, or not such that the batch can be made again.
        store: Takes the batches themselves down, so that they need not be made again.

    Attributes:
        watch: As given.
        store: As given.
        data: Tells if the data change.
    """

    def __init__(
        self,
        *,
        digest: bool,
        watch: RandomWatch,
        guard: Guard,
        problem: Callable[[str], None],
        remark: Callable[[str], None],
        store: BatchStore | None = None,
    ) -> None:
        self._digest = digest and store is None
        self.store = store
        self.watch = watch
        self._guard = guard
        self._problem = problem
        self.data = DataWatch(stored=store is not None, problem=problem, remark=remark)
        self._version = 0
        self._tokens = itertools.count()
        self._loaders: dict[int, DataLoader] = {}
        self._sinks: dict[int, deque[TrackedBatch]] = {}
        self._positions: dict[int, int] = {}
        self._arrived: tuple[Draw, ...] = ()
        self._transferred_with: dict[str, bytes] = {}
        self._intern = _Interned()
        self._trainer: Any = None

    def install(self, trainer: Any, module: Any, patches: Patches) -> None:
        """Tap the loaders of the coming fit."""
        self._trainer = trainer
        by_iterator = takes_iterator(module)
        if by_iterator:
            self._problem(
                "training_step takes dataloader_iter and fetches batches itself, so a step cannot be handed its batch "
                "again. Write training_step(batch, batch_idx) instead"
            )

        prepares = False  # the Trainer prepares training loaders

        def tap_process(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def process_dataloader(loader: Any) -> Any:
                loader = process(loader)
                if not prepares:
                    return loader
                tapped = self._guard.run(self._wrap, loader, by_iterator)
                return loader if tapped is None else tapped

            return process_dataloader

        def tap_setup(setup: Callable[[], None]) -> Callable[[], None]:
            def setup_data() -> None:
                nonlocal prepares
                # Searches set validation loaders up, too, while the Trainer says that it is training.
                prepares = True
                try:
                    setup()
                finally:
                    prepares = False

            return setup_data

        def tap_convert(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def convert_input(batch: Any) -> Any:
                if trainer.training:
                    batch, tracked = untracked(batch, joined=len(self._loaders) > len(self._sinks))
                    self._guard.run(self._note, batch, tracked)
                return convert(batch)

            return convert_input

        def give_back() -> None:
            combined = getattr(trainer.fit_loop, "_combined_loader", None)
            if combined is not None:
                combined.flattened = [[*_layers(loader)][-1] for loader in combined.flattened]

        patches.afterwards(give_back)
        patches.place(trainer.fit_loop, "setup_data", tap_setup)
        patches.place(trainer.strategy, "process_dataloader", tap_process)
        patches.place(trainer.precision_plugin, "convert_input", tap_convert)

    def take(self) -> tuple[tuple[Draw, ...], dict[str, bytes]]:
        """Return draws of the batch at hand and the random states at its transfer; each batch is given once."""
        taken = self._arrived, self._transferred_with
        self._arrived, self._transferred_with = (), {}
        return taken

    def take_fetched(self) -> tuple[Draw, ...]:
        """Return draws of everything that user code has fetched from the loaders itself since the last call."""
        fetched = [tracked for sink in self._sinks.values() for tracked in sink]
        for sink in self._sinks.values():
            sink.clear()
        return tuple(draw for tracked in fetched for draw in self._draws(tracked))

    def originals(self) -> tuple[Any, ...]:
        """Return the loaders of the fit as the Trainer prepared them, without ids; empty before it has."""
        used = self._trainer.train_dataloader
        return () if used is None else tuple([*_layers(loader)][-1] for loader in tree_flatten(used)[0])

    def describe(self) -> tuple[tuple[str, int], ...]:
        """Return class and length of every loader's data set, in the loaders' order; length -1 if ids are no positions
        in it."""
        described = []
        keyed = self.store is not None and self.store.keyed
        for loader in tree_flatten(self._trainer.train_dataloader)[0]:
            dataset = getattr(loader, "dataset", loader)
            kind = dataset.__class__
            indexed = not keyed and any(_is_layer(twin, loader) for twin in self._loaders.values())
            described.append((f"{kind.__module__}.{kind.__qualname__}", _length(dataset) if indexed else -1))
        return tuple(described)

    def _wrap(self, loader: Any, by_iterator: bool) -> Any:
        stored = self.store is not None
        if _length(getattr(loader, "dataset", None)) == 0:
            self._problem(
                f"the training data set {type(loader.dataset).__name__} is empty, so there will be no step to record"
            )
            return None
        if not isinstance(loader, DataLoader):
            if not stored:
                self._problem(
                    f"the training data come from a {type(loader).__qualname__}, which is not a DataLoader, so "
                    "examples have no ids. Put the examples into a map-style Dataset and pass a DataLoader, or keep "
                    f"the batches in the log: {STORE_BATCHES}"
                )
            return loader
        if isinstance(loader.dataset, IterableDataset):
            if not stored:
                self._problem(
                    f"{type(loader.dataset).__qualname__} is an IterableDataset, whose examples have no ids. Give the "
                    "data set __len__ and __getitem__ instead of __iter__, or keep the batches in the log: "
                    f"{STORE_BATCHES}"
                )
            return loader
        own_iteration = type(loader).__iter__ is not DataLoader.__iter__
        if own_iteration and not stored:
            self._problem(
                f"{type(loader).__qualname__} changes batches in its own __iter__, which happens outside data set and "
                "collate_fn and cannot be repeated. Move that work into collate_fn or on_after_batch_transfer, or "
                f"keep the batches in the log: {STORE_BATCHES}"
            )
        if tracked_loader(loader) is not None and (by_iterator or own_iteration):
            self._problem(
                "two recorders are in the Trainer, and the loader's batches are fetched by other code than the "
                "Trainer's, which only one of them can watch. Leave one of them out"
            )
        token = next(self._tokens)
        if by_iterator or own_iteration:
            self._sinks[token] = deque()
        twin = track(loader, token, digest=self._digest, watch=self.watch, sink=self._sinks.get(token))
        self._loaders[token] = twin
        self._positions.clear()
        return twin

    def _note(self, batch: Any, tracked: list[TrackedBatch]) -> None:
        self._transferred_with = self.watch.capture()
        draws = [draw for one in tracked for draw in self._draws(one)]
        for sink in self._sinks.values():
            if sink:
                draws.extend(self._draws(sink.popleft()))
        self._arrived = tuple(draws)
        if self.store is not None:
            trainer = self._trainer
            self._arrived = self.store.take(
                plain_batch(batch),
                self._arrived,
                version=self._version,
                rank=trainer.global_rank,
                world=trainer.world_size,
            )

    def _draws(self, tracked: TrackedBatch) -> list[Draw]:
        """Return the draw of a tracked batch; none if its indices are no ids."""
        if tracked.failure:
            raise RuntimeError(tracked.failure)
        if tracked.ids is None:
            if self.store is None:
                self._problem(
                    "the sampler yields indices that are not integers, so examples have no ids. Let it yield integers "
                    f"and look other things up in the data set, or keep the batches in the log: {STORE_BATCHES}"
                )
            return []
        if tracked.single and not tracked.listed and len(tracked.ids) != 1 and self.store is None:
            self._problem(
                "the loader has batch_size=None and a sampler that yields several indices at once, and not in a list; "
                "let it yield lists, pass it as batch_sampler and let collate_fn join the examples, or keep the "
                f"batches in the log: {STORE_BATCHES}"
            )
        position = self._position(tracked.token)
        if (twin := self._loaders.get(tracked.token)) is not None:
            dataset = [*_layers(twin)][-1].dataset
            self._version = self.data.version(position, dataset, self._trainer.current_epoch)
            if self.store is not None and not self._version:
                self.store.begin_numbers(_length(dataset))
        return [
            Draw(
                loader=position,
                example_ids=tracked.ids,
                random={name: self._intern(data) for name, data in tracked.random.items()},
                digest=tracked.digest,
                single=tracked.single,
                listed=tracked.listed,
            )
        ]

    def _position(self, token: int) -> int:
        if not self._positions:
            used = tree_flatten(self._trainer.train_dataloader)[0]
            places = {t: [i for i, u in enumerate(used) if _is_layer(twin, u)] for t, twin in self._loaders.items()}
            self._positions = {t: used_at[0] for t, used_at in places.items() if used_at}
            self._loaders = {t: self._loaders[t] for t in self._positions}
            self._sinks = {t: sink for t, sink in self._sinks.items() if t in self._loaders}
        return self._positions.get(token, 0)


class _Interned:
    """Gives one object for equal states: those of workers arrive as new objects with each batch."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def __call__(self, data: bytes) -> bytes:
        if len(self._known) > 256:
            self._known.clear()
        return self._known.setdefault(data, data)


def _layers(loader: Any) -> Iterator[Any]:
    """Yield a loader and those that it tracks, one recorder after another, down to the user's."""
    while loader is not None:
        yield loader
        loader = tracked_loader(loader)


def _is_layer(twin: Any, loader: Any) -> bool:
    return any(twin is layer for layer in _layers(loader))


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return -1
