"""Record, model and data brought together."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_sgdinf.arguments import check_given
from lightning_sgdinf.checkpointing import MEMORY_BYTES
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import RunLog, Trajectory, reindex, with_late_parameters, with_names_of
from lightning_sgdinf.replay.batches import BatchSource, expect_one_loader
from lightning_sgdinf.replay.data_module import set_up, with_trainer
from lightning_sgdinf.replay.dataloaders import (
    given_data,
    stored_run_loaders,
    training_loaders,
    validation_batches,
    validation_loader,
)
from lightning_sgdinf.replay.end_remarks import end_remarks
from lightning_sgdinf.replay.lightning_host import recorded_host
from lightning_sgdinf.replay.loader_forms import by_item
from lightning_sgdinf.replay.loss_metrics import wake_loss_metrics
from lightning_sgdinf.replay.objective import open_objective
from lightning_sgdinf.replay.opened import OpenedRun
from lightning_sgdinf.replay.per_example_loss import PerExampleLoss
from lightning_sgdinf.replay.rebuilding import chosen_rebuild
from lightning_sgdinf.replay.recorded_state import RecordedState, enable_rebuilding, expect_checkpoint, shorten
from lightning_sgdinf.replay.row_owners import RowOwners


@contextmanager
def open_run(
    model: nn.Module,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    *,
    log: str | Path | Trajectory,
    at: RecordedState | None = None,
    device: torch.device,
    tap: str | None = None,
    dtype: torch.dtype | None = None,
    per_example_loss: PerExampleLoss | None = None,
    val_loader: int | None = None,
    rows: RowOwners | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: bool = False,
    rebuild: Literal["auto", "exact", "close"] = "auto",
) -> Iterator[OpenedRun]:
    """Open a recorded run; inside, the model is borrowed, and afterwards it is as it was.

    Args:
        model: The LightningModule that was trained.
        train_dataloaders: As given to ``Trainer.fit``.
        val_dataloaders: As given to ``Trainer.fit``; looked for when something asks for validation data.
        datamodule: In place of loaders.
        log: Path of the record, or an open one.
        at: The state to end with: so many steps, ``"best"``, or a checkpoint; ``None`` for the last.
        device: Where to compute.
        tap: Name of a sub-module at whose output example weights enter, in place of loss functions.
        dtype: Floating-point precision to compute in, if not the recorded one.
        per_example_loss: Computes the loss of each example, for losses written by hand.
        val_loader: Number of the validation loader, where the run has several.
        rows: Says whose the rows of a loss are.
        memory_bytes: How much memory methods may take for states.
        progress: Show progress bars on standard error.
        rebuild: How states that were not stored are rebuilt, see `lightning_sgdinf.replay.rebuilding`.

    Raises:
        UnsupportedRunError: The run cannot be replayed, or holds no complete step.
        LogError: No, unreadable, or damaged log.
        ModelMismatchError: Another model.
        DataMismatchError: Another data set.
    """
    check_given(model, train_dataloaders, val_dataloaders, log)
    arguments: dict[str, Any] = {"device": device, "tap": tap, "dtype": dtype, "memory_bytes": memory_bytes}
    arguments |= {"per_example_loss": per_example_loss, "rows": rows, "val_loader": val_loader, "at": at}
    arguments["rebuild"] = rebuild
    if isinstance(log, (str, Path)):
        with (
            RunLog.open(log) as read,
            open_run(
                model, train_dataloaders, val_dataloaders, datamodule, log=read, progress=progress, **arguments
            ) as run,
        ):
            yield run
        return
    where = str(log.path) if isinstance(log, RunLog) else log
    reopen = functools.partial(open_run, model, train_dataloaders, val_dataloaders, datamodule, log=where, **arguments)
    model = getattr(model, "_orig_mod", model)  # as a Trainer takes a compiled module
    tensors = (*model.named_parameters(), *model.named_buffers(), *model.named_modules())
    remarks = end_remarks(log, model) if at is None else ()
    log = with_names_of(log, [name for name, _ in tensors])
    if log.header.replayable:
        raise UnsupportedRunError(f"this run was recorded but cannot be replayed: {log.header.replayable}")
    if len(log) == 0:
        raise UnsupportedRunError("the log holds no complete step, so there is nothing to replay")
    log, checkpoint = shorten(log, model, at)
    shortened, log = log, with_late_parameters(log)
    header = log.header
    train_dataloaders, datamodule = given_data(train_dataloaders, datamodule)
    host = recorded_host(log, model, datamodule, device)
    was_set_up = getattr(datamodule, "trainer", None) is not None
    with ExitStack() as stack:
        for owner in (model, datamodule):
            stack.enter_context(with_trainer(owner, host.stand_in))
        if datamodule is not None:
            find_loaders = lambda: training_loaders(model, train_dataloaders, datamodule)  # noqa: E731
            set_up(datamodule, find_loaders, log, was_set_up=was_set_up)
        log, loaders, size = _training_data(log, model, train_dataloaders, datamodule)
        dataset = getattr(loaders[0].dataset, "dataset_of_lists", loaders[0].dataset) if loaders else None
        source = BatchSource(loaders, header, size=size)
        host.stand_in.know(train_dataloader=loaders[0] if len(loaders) == 1 else loaders or None)
        arguments = {"tap": tap, "dtype": dtype, "per_example_loss": per_example_loss, "rows": rows}
        objective = stack.enter_context(open_objective(model, header, source, host, **arguments))
        how = chosen_rebuild(rebuild, log, device)
        enable_rebuilding(shortened, log, objective, how)
        expect_checkpoint(checkpoint, log)
        last = log.step(len(log) - 1)
        wake_loss_metrics(objective, lambda: log.state(len(log)), last)
        yield OpenedRun(
            log=log,
            objective=objective,
            dataset=dataset,
            find_validation_loader=lambda: validation_loader(
                model, val_dataloaders, datamodule, val_loader, validation_batches(header, val_loader)
            ),
            val_loader=val_loader,
            memory_bytes=memory_bytes,
            progress=progress,
            reopen=reopen,
            remarks=remarks,
            rebuild=how,
        )


def _training_data(
    log: Trajectory, model: nn.Module, train_dataloaders: Any, datamodule: Any
) -> tuple[Trajectory, list[Any], int | None]:
    """Return the record with examples that count from 0, the training loaders, and ``N`` where the log has it."""
    header, size = log.header, None
    expect_one_loader(log.step(0).first_pass, 0)  # later, one of several may be exhausted
    if kind := header.extra.get("loaders_in"):
        raise UnsupportedRunError(
            f"the run was trained on loaders in a {kind}, so that its batches came in one, too; expected a loader by "
            "itself. Train with the loader of its data set (of a ConcatDataset for several): fit(model, loader)."
        )
    if header.extra.get("stores_batches"):
        loaders = stored_run_loaders(train_dataloaders, header)
        log, size = reindex(log)
        if any(0 <= length < size for _, length in header.datasets):  # more than one data set has
            loaders = []
    else:
        loaders = training_loaders(model, train_dataloaders, datamodule)
    if any(draw.listed for draw in log.step(0).first_pass.draws):
        loaders = [by_item(loader) for loader in loaders]
    return log, loaders, size
