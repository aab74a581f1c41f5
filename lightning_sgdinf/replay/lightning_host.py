"""A Trainer's part of a step, rebuilt from the record: precision, batch transfer, device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import CONTINUED, Header, Step, Trajectory
from lightning_sgdinf.replay.attributes import RecordedAttributes
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.moment import Moment
from lightning_sgdinf.replay.stand_in import TrainerStandIn


def recorded_host(log: Trajectory, module: Any, datamodule: Any, device: torch.device) -> Host:
    """Return the host of a recorded run on a given device.

    Args:
        log: The record.
        module: The LightningModule, for its batch-transfer hooks.
        datamodule: Its batch-transfer hooks come first, as in a Trainer; may be ``None``.
        device: Where to compute.

    Raises:
        UnsupportedRunError: If the precision is not one that can be repeated.
    """
    header, last = log.header, log.step(len(log) - 1)
    plugin = precision_plugin(header.precision, device)
    context = cast("Callable[[], AbstractContextManager[Any]]", plugin.train_step_context)
    return Host(
        device=device,
        convert_input=plugin.convert_input,
        transfer=_transfer(module, datamodule, device),
        step_context=context,
        validation_context=nullcontext if header.precision in ("32-true", "32") else context,
        stand_in=trainer_of(header, last, datamodule=datamodule, device=device, precision_plugin=plugin),
        attributes=RecordedAttributes(log, device),
    )


_EARLIER = ("max_epochs", "max_steps", "accumulate_grad_batches", "num_training_batches", "world_size")
"""Settings of the Trainer that a header of an earlier release has by themselves."""


def trainer_of(header: Header, last: Step, **known: Any) -> TrainerStandIn:
    """Return what stands for the Trainer of a recorded run.

    Args:
        header: Of the run.
        last: Its last step.
        known: More that is known.
    """
    recorded = cast("dict[str, Any]", header.extra.get("trainer") or {})
    facts = {k: header.extra[k] for k in _EARLIER if k in header.extra}
    facts |= {
        "precision": header.precision,
        "optimizer_class": header.optimizer,
        **recorded,
        **{name: value for name, value in known.items() if value is not None},
    }
    resumed = cast("list[dict[str, Any]]", header.extra.get(CONTINUED) or [])
    stand_in = TrainerStandIn(
        later=[(entry["step"], entry.get("trainer") or {}) for entry in resumed], state_in=_state, **facts
    )
    stand_in.set_end(Moment.of_last_validation(last))
    return stand_in


def _state(stage: str) -> TrainerState:
    """Return the Trainer's state in a stage of a fit."""
    running = RunningStage.TRAINING if stage == "train" else RunningStage.VALIDATING
    return TrainerState(fn=TrainerFn.FITTING, status=TrainerStatus.RUNNING, stage=running)


def precision_plugin(precision: str, device: torch.device) -> Precision:
    """Return Lightning's plugin for a recorded precision."""
    if precision in ("32-true", "32"):
        return Precision()
    if precision in ("64-true", "64"):
        return DoublePrecision()
    if precision in ("bf16-mixed", "16-mixed"):
        # Loss scaling cancels in the gradient, so a 16-bit run is replayed without its scaler.
        plugin = MixedPrecision("bf16-mixed", device.type)
        plugin.precision = cast("Any", precision)
        return plugin
    if precision in ("bf16-true", "16-true"):
        return HalfPrecision(cast("Any", precision))
    raise UnsupportedRunError(
        f"the run was trained with precision {precision!r}; replay knows 32-true, 64-true, bf16-mixed, 16-mixed, "
        "bf16-true and 16-true"
    )


def _transfer(module: Any, datamodule: Any, device: torch.device) -> Callable[..., Any]:
    before, move, after = (
        _hook(module, datamodule, name)
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    )

    def transfer(batch: Any, dataloader_idx: int = 0) -> Any:
        if before is not None:
            batch = before(batch, dataloader_idx)
        if move is not None and (device.type != "cpu" or _overridden(move)):
            batch = move(batch, device, dataloader_idx)
        return batch if after is None else after(batch, dataloader_idx)

    return transfer


def _hook(module: Any, datamodule: Any, name: str) -> Callable[..., Any] | None:
    """Return the data module's hook if it overrides it, else the module's; ``None`` where the default does nothing."""
    for owner in (datamodule, module):
        hook = getattr(owner, name, None)
        if hook is not None and (_overridden(hook) or (owner is module and name == "transfer_batch_to_device")):
            return hook
    return None


def _overridden(hook: Callable[..., Any]) -> bool:
    return not getattr(hook, "__module__", "").startswith(("lightning.", "pytorch_lightning."))
