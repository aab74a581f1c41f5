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

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.features import first_not_finite
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.kernels import Interceptor
from lightning_sgdinf.replay import LOSSES, Examples, OpenedRun


@dataclass(frozen=True, slots=True)
class LossBaseline:
    """Minus each example's training loss at the final model, in eval mode and without augmentation.

    Attributes:
        batch_size: Examples per forward pass.
        seed: Of what the training step draws, or a data set that does not say what its examples are without
            augmentation.
        title: Name of the values, for tables and axes.
    """

    batch_size: int = 500
    seed: int = 0
    title = "minus the training loss"

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``: minus the loss.

        Raises:
            NonFiniteError: If an example's loss is NaN or infinite; names it.
        """
        examples = run.training.plain()
        values = torch.zeros(run.examples, dtype=torch.float64)
        with random_state.seeded(self.seed), run.at(run.model) as loss:
            for ids, batch in examples.batches(self.batch_size):
                losses = _batch_losses(loss, batch, len(ids))
                if losses is None:
                    losses = torch.tensor([_single_loss(loss, examples, i) for i in ids], dtype=torch.float64)
                values[ids] = losses
        if (wrong := first_not_finite(values)) is not None:
            raise NonFiniteError(f"the final model's loss on training example {wrong} is {values[wrong].item()}")
        return -values


class _Rows:
    """The values per row of the one loss function of a step."""

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


def _batch_losses(loss: Callable[[Any], Tensor], batch: Any, count: int) -> Tensor | None:
    """Return the losses of a batch if its step is the mean of one loss function; ``None`` otherwise."""
    rows = _Rows(count)
    with Interceptor(dict.fromkeys(LOSSES, rows.handle)):
        whole = loss(batch).detach()
    if (
        rows.calls != 1
        or rows.values is None
        or not torch.isclose(rows.values.mean(), whole.double().cpu(), rtol=1e-4, atol=1e-7)
    ):
        return None
    return rows.values


def _single_loss(loss: Callable[[Any], Tensor], examples: Examples, example: Tensor) -> float:
    """Compute the loss of one example; an error that names a step in training names the example here."""
    try:
        return float(loss(examples.batch(example[None])).detach())
    except NonFiniteError as error:
        raise NonFiniteError(
            f"training example {int(example)} alone has no finite loss at the final model: it is NaN or infinite, "
            "or the loss function ignores its label; look at the example, or leave it out of the data set"
        ) from error
