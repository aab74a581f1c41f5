"""A data module as a Trainer has it: set up once, with a Trainer to ask.

Data modules that split at random in ``setup`` split anew each time. One that a fit has set up is therefore taken as it
is, if its batches are the recorded ones, and set up again only if they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import DataLoader

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, DataMismatchError, SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.log import Header, MicroBatch, Trajectory
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.stand_in import TrainerStandIn

Loaders = list[DataLoader[Any]]


@contextmanager
def with_trainer(owner: Any, stand_in: TrainerStandIn) -> Iterator[None]:
    """Let a data module, or a module, ask the stand-in inside; afterwards it has the Trainer that it had.

    Args:
        owner: A data module, which has ``trainer``, or a LightningModule, which has ``_trainer``.
        stand_in: Stands for the Trainer.
    """
    attributes = getattr(owner, "__dict__", {})
    name = next((n for n in ("_trainer", "trainer") if n in attributes), None)
    if name is None and isinstance(getattr(type(owner), "trainer", None), property):
        name = "_trainer"  # a library may have taken it off the module
    if name is None:
        yield
        return
    had, before = name in attributes, attributes.get(name)
    attributes[name] = stand_in
    try:
        yield
    finally:
        attributes[name] = before
        if not had:
            del attributes[name]


def set_up(datamodule: Any, loaders_of: Callable[[], Loaders], log: Trajectory, *, was_set_up: bool) -> None:
    """Set a data module up for the recorded run, unless it is.

    Args:
        datamodule: The data module.
        loaders_of: Asks it for its training loaders.
        log: The record.
        was_set_up: A fit has set it up.

    Raises:
        ConfigurationError: Its ``setup`` fails.
        DataMismatchError: Its ``setup`` gives another split each time, and none is that of the run.
    """
    if was_set_up:
        with suppress(Exception):  # a data module that was torn down may fail in any way
            if _gives_recorded_batches(loaders_of(), log):
                return
    try:
        datamodule.prepare_data()
        datamodule.setup("fit")
    except SgdInfluenceError:
        raise
    except Exception as error:
        name = type(datamodule).__qualname__
        raise ConfigurationError(
            f"{name}.setup('fit') raised {type(error).__name__}: {error}. A data module that was set up by hand or by "
            "a library and does not let itself be set up again gives its loaders all the same: pass these, "
            "run(model, datamodule.train_dataloader(), datamodule.val_dataloader(), log=...)."
        ) from error
    if log.header.extra.get("stores_batches"):
        return
    with suppress(UnsupportedRunError):
        first = loaders_of()
        if _gives_recorded_batches(first, log):
            return
        digest = _digest_now(first, log)
        datamodule.setup("fit")
        if _digest_now(loaders_of(), log) != digest:
            raise DataMismatchError(
                f"{type(datamodule).__qualname__}.setup splits the data anew each time it is called, and this object "
                "does not have the split of training. Pass the very data module that was trained (its split is kept), "
                "give random_split a generator with a seed, or record with TrajectoryRecorder(store_batches=True)."
            )


def _probe(log: Trajectory) -> tuple[int, MicroBatch] | None:
    """Return a recorded batch with a checksum, and its step."""
    if not len(log):
        return None
    step = log.step(len(log) - 1)
    for micro in step.micro_batches:
        if len(micro.draws) == 1 and micro.draws[0].digest is not None and micro.draws[0].batch is None:
            return step.index, micro
    return None


def _gives_recorded_batches(loaders: Loaders, log: Trajectory) -> bool:
    """Return false if a recorded batch, made again, is another; true also where there is nothing to compare."""
    probe = _probe(log)
    if probe is None:
        return bool(loaders)
    try:
        with random_state.preserved():
            _source(loaders, log.header).batch(probe[1], step=probe[0])
    except DataMismatchError:
        return False
    return True


def _digest_now(loaders: Loaders, log: Trajectory) -> int:
    probe = _probe(log)
    if probe is None:
        return 0
    with random_state.preserved():
        return batch_digest(_source(loaders, log.header, check=False).batch(probe[1], step=probe[0]))


def _source(loaders: Loaders, header: Header, *, check: bool = True) -> BatchSource:
    return BatchSource(loaders, header, check=check)
