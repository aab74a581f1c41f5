"""Sentences on the end of a record: whether the model that the fit left is the one that scores are about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lightning_sgdinf.bitwise import same_bits
from lightning_sgdinf.log import Trajectory, uncompiled
from lightning_sgdinf.state import ModelState

SHOWN = 3


def end_remarks(log: Trajectory, module: nn.Module) -> tuple[str, ...]:
    """Return what a reader of scores must know of the end of a run.

    Args:
        log: The whole record.
        module: Given to be replayed, as it is now; if it is the one that this run trained, it is compared with what
            the record ends with.
    """
    reason, _, remark = str(getattr(log, "end_reason", "")).partition("; ")
    if reason == "completed" and remark:
        return (f"{remark[0].upper()}{remark[1:].rstrip('.')}.",)
    differing = _differing(log, module) if _was_trained_by(module, getattr(log, "path", None)) else []
    if not differing:
        return ()
    more = " ..." if len(differing) > SHOWN else ""
    return (
        "The given model has other values than the record ends with in "
        f"{', '.join(differing[:SHOWN])}{more}: something changed it after the last step (a hook at the end of the "
        "fit, an average that is not recorded, a checkpoint loaded). Scores are about the recorded model.",
    )


def _was_trained_by(module: nn.Module, path: Any) -> bool:
    """Return true if the Trainer that a module still has recorded to a path."""
    callbacks = getattr(module.__dict__.get("_trainer"), "callbacks", None) or ()
    recorded = [c.path for c in callbacks if isinstance(getattr(c, "path", None), Path)]
    return path is not None and Path(path) in recorded


def _differing(log: Trajectory, module: nn.Module) -> list[str]:
    """Return the names of tensors of a module that are others than those of the final model, averaged or not."""
    if not log.finished:
        return []
    final: ModelState = log.state(len(log))
    last = {**final.params, **final.buffers}
    own = {uncompiled(n): v for n, v in (*module.named_parameters(), *module.named_buffers())}
    return [
        name
        for name, value in last.items()
        if (now := own.get(uncompiled(name))) is not None
        and (now.dtype, now.shape) == (value.dtype, value.shape)
        and not any(same_bits(now.detach().cpu(), v.cpu()) for v in (value, (log.average or {}).get(name, value)))
    ]
