"""The moment of a run at which the module believes to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_sgdinf.log import MicroBatch, ParamGroup, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A pass of a run, as a Trainer tells it.

    Attributes:
        index: Number of steps taken before it.
        stage: ``"train"``, or ``"validate"`` for the validation at the end of the run.
        epoch: The Trainer's ``current_epoch``.
        global_step: The Trainer's ``global_step``.
        batch_idx: Index of the batch, -1 if it is none of the run's.
        rank: Number of the training process.
        groups: The optimizer's param groups.
    """

    index: int = 0
    stage: Literal["train", "validate"] = "train"
    epoch: int = 0
    global_step: int = 0
    batch_idx: int = -1
    rank: int = 0
    groups: tuple[ParamGroup, ...] = ()

    @classmethod
    def of_pass(cls, step: Step, micro: MicroBatch | None = None) -> Moment:
        """Return the moment of a pass of a recorded step."""
        return cls(
            index=step.index,
            epoch=step.epoch,
            global_step=step.global_step,
            batch_idx=-1 if micro is None else micro.batch_idx,
            rank=0 if micro is None else micro.rank,
            groups=step.groups,
        )

    @classmethod
    def of_last_validation(cls, last: Step) -> Moment:
        """Return the moment of a validation after the last step of a run."""
        return cls(
            index=last.index + 1,
            stage="validate",
            epoch=last.epoch,
            global_step=last.global_step + 1,
            groups=last.groups,
        )
