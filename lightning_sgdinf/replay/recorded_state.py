"""A state of a recorded run that scores may be asked for, in place of the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError, DataMismatchError, StateNotStoredError, UnsupportedRunError
from lightning_sgdinf.foreign_files import read_tensors
from lightning_sgdinf.log import Trajectory
from lightning_sgdinf.log.shortened import Shortened
from lightning_sgdinf.plain_text import printable
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.rebuilding import Rebuild, Rebuilder
from lightning_sgdinf.state import ModelState

RecordedState: TypeAlias = "int | Literal['best'] | str | Path"
"""The state after so many steps, that of a checkpoint file, or of the best checkpoint that the fit kept."""


def best_checkpoint(model: nn.Module) -> Path:
    """Return the best checkpoint that the last fit of a module kept.

    Args:
        model: The LightningModule that was trained, as the fit left it.

    Raises:
        ConfigurationError: It has no Trainer, or the fit kept none by a monitored metric.
    """
    trainer: Any = getattr(model, "__dict__", {}).get("_trainer")
    kept = getattr(trainer, "checkpoint_callbacks", None) or []
    paths = [c.best_model_path for c in kept if getattr(c, "monitor", None) and getattr(c, "best_model_path", "")]
    if not paths:
        why = "the model has no Trainer" if trainer is None else "no ModelCheckpoint(monitor=...) of the fit kept one"
        raise ConfigurationError(f"at='best': {why}. Give the path of the checkpoint, at='checkpoints/best.ckpt'")
    return Path(paths[0])


def shorten(log: Trajectory, model: nn.Module, at: RecordedState | None) -> tuple[Trajectory, dict[str, Tensor]]:
    """Return the record up to a state, and the tensors that a checkpoint has of that state.

    Args:
        log: The record.
        model: The LightningModule that was trained.
        at: Which state; ``None`` for the last.

    Raises:
        ConfigurationError: There is no such state, or the checkpoint is of another run.
        UnsupportedRunError: The run averages its weights, which are known at its end alone.
    """
    if at is None:
        return log, {}
    tensors: dict[str, Tensor] = {}
    if isinstance(at, bool) or not isinstance(at, (int, str, Path)):
        raise ConfigurationError(f"at={at!r}: expected a number of steps, 'best', or the path of a checkpoint")
    if not isinstance(at, int):
        path = best_checkpoint(model) if at == "best" else Path(at)
        at, tensors = _read_checkpoint(path, log)
    if not 1 <= at <= len(log):
        raise ConfigurationError(f"at={at}: expected a number of steps from 1 to {len(log)}, which the log has")
    if at == len(log):
        return log, tensors
    if log.average is not None:
        raise UnsupportedRunError(
            f"at={at}: the fit averaged its weights, and the average is recorded at its end alone. Leave out at=, or "
            "record a fit that stops there"
        )
    return Shortened(log, at), tensors


def enable_rebuilding(log: Trajectory, seen: Trajectory, objective: Objective, rebuild: Rebuild) -> None:
    """Let the last state of a shortened record be made by taking steps again, where it is not stored.

    Args:
        log: The record as `shorten` gave it.
        seen: The same, as it is replayed.
        objective: The opened model.
        rebuild: How; no stored state follows that the drift of a close one could be measured at.
    """
    if not isinstance(log, Shortened):
        return

    def last_state() -> ModelState:
        stored = [int(i) for i in seen.state_indices if i < len(seen)]
        if not stored:
            raise StateNotStoredError(
                f"the log stores no state at or before step {len(seen)} (keep={seen.header.keep!r}), so the model "
                "there cannot be made. Record with keep='every_step' or 'every(k)'"
            )
        rebuilder, state = Rebuilder(seen, objective, rebuild), seen.state(stored[-1])
        for step in seen.steps(stored[-1], len(seen)):
            state = rebuilder.advance(state, step)
        return state

    log.rebuild = last_state


def expect_checkpoint(tensors: dict[str, Tensor], log: Trajectory) -> None:
    """Make sure that a checkpoint has the last state of a record.

    Args:
        tensors: Of the checkpoint, by name; none to compare nothing.
        log: The record up to it.

    Raises:
        DataMismatchError: It has another one: the run was resumed from an earlier checkpoint since.
    """
    for name, value in log.state(len(log)).params.items() if tensors else ():
        if name in tensors and not torch.equal(tensors[name].to(value.dtype), value):
            raise DataMismatchError(
                f"the checkpoint's {name} is not what the log has at that step. Expected the same: the run was "
                "probably resumed from an earlier checkpoint since, and went another way. Pass a checkpoint of the "
                "recorded way"
            )


def _read_checkpoint(path: Path, log: Trajectory) -> tuple[int, dict[str, Tensor]]:
    """Return how many steps of a log a checkpoint has, and its tensors."""
    try:
        saved = read_tensors(path)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"at={str(path)!r}: {error}. Or give the number of its steps, if you load it yourself: "
            f"at=torch.load({str(path)!r}, weights_only=False)['lightning_sgdinf'][0]['steps']"
        ) from error
    noted = saved.get("lightning_sgdinf") if isinstance(saved, dict) else None
    bookmarks = [b for b in noted if isinstance(b, dict)] if isinstance(noted, list) else []
    own = [b for b in bookmarks if b.get("run_id") == log.header.run_id and not b.get("lost")]
    if not own:
        runs = (
            printable(", ".join(sorted({str(b.get("run_id")) for b in bookmarks[:5]}))[:400])
            or "none, it was saved without a recorder"
        )
        raise ConfigurationError(
            f"{path} is no checkpoint of the recorded run {log.header.run_id}; the runs it belongs to: {runs}. Pass "
            "one that was saved while this run was recorded, or the number of steps, at=..."
        )
    steps, state = own[0].get("steps"), saved.get("state_dict", {})
    if type(steps) is not int or not isinstance(state, dict):
        raise ConfigurationError(f"{path}: its bookmark says no number of steps, or its state_dict is none")
    return steps, {name: value for name, value in state.items() if isinstance(value, Tensor)}
