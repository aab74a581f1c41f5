"""Precision, batch transfer and device of a Trainer around ``training_step``, as a value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_sgdinf.replay.attributes import RecordedAttributes
from lightning_sgdinf.replay.stand_in import TrainerStandIn


def _as_it_is(batch: Any, dataloader_idx: int = 0) -> Any:
    del dataloader_idx
    return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Everything that the Trainer did around ``training_step``, to be repeated.

    Attributes:
        device: Where to compute.
        convert_input: The precision plugin's conversion of a batch.
        transfer: Batch-transfer hooks and the move to the device, of a batch of that data loader.
        step_context: Makes the precision plugin's context of a step (autocast).
        validation_context: The same of a validation step.
        stand_in: Takes the Trainer's place.
        attributes: What hooks set on the module between steps; ``None`` if nothing is known of that.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    convert_input: Callable[[Any], Any] = _as_it_is
    transfer: Callable[..., Any] = _as_it_is
    step_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    validation_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    stand_in: TrainerStandIn = field(default_factory=TrainerStandIn)
    attributes: RecordedAttributes | None = None
