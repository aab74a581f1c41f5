r"""The change of the ensemble without each example.

An example is in one shard, so the derivative of any function of the ensemble in its weight goes through one member:
:math:`\mathrm{d}L/\mathrm{d}w_j = \partial L/\partial\theta_{s(j)} \cdot \mathrm{d}\theta_{s(j)}/\mathrm{d}w_j`. It is
that member's own walk, begun with the gradient of the ensemble's loss in its parameters while the others stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.held_tensors import call_with
from lightning_sgdinf.query import Better, Term, ValidationData


class EnsembleLoss:
    """The mean cross entropy of an ensemble's answers over the validation set, as a query of one of its members.

    Args:
        others: The other members, which stay as they are.
        aggregation: ``"mean_softmax"`` or ``"mean_logits"``; votes have no gradient.

    Raises:
        ConfigurationError: Another aggregation.
    """

    better: Better = "lower"

    def __init__(self, others: Sequence[nn.Module], aggregation: str = "mean_softmax") -> None:
        if aggregation not in ("mean_softmax", "mean_logits"):
            raise ConfigurationError(
                f"the loss of an ensemble whose aggregation is {aggregation!r} has no gradient or no meaning; give "
                "query=, e.g. MeanLoss(), which is asked of every member and averaged"
            )
        self.aggregation = aggregation
        self._others = [copy.deepcopy(other).eval().requires_grad_(False) for other in others]

    def __repr__(self) -> str:
        return f"EnsembleLoss(members={len(self._others) + 1}, aggregation={self.aggregation!r})"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar."""
        del data
        return ("validation loss of the ensemble",)

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per batch, weighted by its size."""
        for batch, _, size in data.batches():
            x, y = batch[0], batch[1]
            own = model(x)
            logits = torch.stack([own, *(self._answer(other, x, own) for other in self._others)])
            mean = logits.log_softmax(2).logsumexp(0) - torch.tensor(float(len(logits)), dtype=own.dtype).log()
            if self.aggregation == "mean_logits":
                mean = logits.mean(0).log_softmax(1)
            yield 0, float(size), F.nll_loss(mean, y)

    @staticmethod
    def _answer(other: nn.Module, x: Any, like: Tensor) -> Tensor:
        """Compute another member's logits, in the precision and on the device in which this one is asked.

        The module itself stays as it is: inside a vectorised pass over many models nothing may be assigned to it.
        """
        tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        cast = {n: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for n, t in tensors.items()}
        with torch.no_grad():
            return call_with(other, cast, x)
