"""A ranking by the training loss at the end of the run: the worst fitted examples first.

The usual cheap way to find wrong labels, and a hard one to beat where labels are wrong at random. Cost: one forward
pass over the training set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.intercept import Interceptor
from lightning_sgdinf.adjoint.objective import Objective
from lightning_sgdinf.adjoint.session import set_modes
from lightning_sgdinf.adjoint.tap import LOSSES
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.log.records import Draw, MicroBatch, Step
from lightning_sgdinf.log.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class LossBaseline:
    """Minus each example's training loss at the final parameters, in eval mode.

    Attributes:
        batch_size: Examples per forward pass.
    """

    batch_size: int = 500

    @property
    def title(self) -> str:
        """What the values are."""
        return "minus the training loss"

    def rank(self, log: Trajectory, objective: Objective, examples: int) -> Tensor:
        """Values ``[N]``: minus the loss.

        Raises:
            NonFiniteError: If an example's loss is NaN or infinite; names it.
        """
        objective.load(log.state(len(log)))
        last = log.step(len(log) - 1)
        values = torch.zeros(examples, dtype=torch.float64)
        every = tuple(n for n, _ in objective.module.named_modules())
        try:
            for start in range(0, examples, self.batch_size):
                ids = torch.arange(start, min(start + self.batch_size, examples))
                found = _batch_losses(objective, last, every, ids)
                if found is None:
                    found = torch.tensor(
                        [_single_loss(objective, last, every, int(i)) for i in ids], dtype=torch.float64
                    )
                values[ids] = found
        finally:
            set_modes(objective.module, ())
            objective.forget_modes()
        if not bool(torch.isfinite(values).all()):
            wrong = int((~torch.isfinite(values)).nonzero()[0])
            raise NonFiniteError(f"the final model's loss on training example {wrong} is {values[wrong].item()}")
        return -values


class _Rows:
    """Sees the one loss function of a step and keeps its value per row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.calls = 0
        self.values: Tensor | None = None

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        out = func(*args, **kwargs)
        if kwargs.get("reduction", "mean") == "mean" and isinstance(out, Tensor) and out.ndim == 0:
            each = func(*args, **{**kwargs, "reduction": "none"})
            if each.shape[:1] == (self.rows,):
                self.values = each.detach().reshape(self.rows, -1).mean(1).double().cpu()
        return out


def _batch_losses(objective: Objective, like: Step, modes: tuple[str, ...], ids: Tensor) -> Tensor | None:
    """Losses of a batch if its step is the mean of one loss function; ``None`` otherwise."""
    rows = _Rows(len(ids))
    with torch.no_grad(), Interceptor(dict.fromkeys(LOSSES, rows.handle)):
        loss = _loss(objective, like, modes, ids)
    if (
        rows.calls != 1
        or rows.values is None
        or not torch.isclose(rows.values.mean(), loss.double().cpu(), rtol=1e-4, atol=1e-7)
    ):
        return None
    return rows.values


def _single_loss(objective: Objective, like: Step, modes: tuple[str, ...], example: int) -> float:
    return float(_loss(objective, like, modes, torch.tensor([example])))


def _loss(objective: Objective, like: Step, modes: tuple[str, ...], ids: Tensor) -> Tensor:
    micro = MicroBatch(batch_idx=0, draws=(Draw(example_ids=ids.numpy()),))
    step = Step(
        index=like.index,
        epoch=like.epoch,
        global_step=like.global_step,
        micro_batches=(micro,),
        groups=(),
        eval_modules=modes,
    )
    return objective.trace(step, micro, objective.batch(step, micro)).loss.detach()
