"""The ways in which the members of an ensemble answer together.

The mean of the softmax outputs is the default: within .003 of the best on every data set that was measured, where votes
lose up to .02 if ties go to the lower class (docs/results/sisa.md).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError

Aggregation = Literal["mean_softmax", "majority", "mean_logits", "mean"]
"""By the mean of the softmax outputs, by votes, by the softmax of the mean logits, or by the mean of the outputs."""


def check_aggregation(aggregation: str) -> None:
    """Refuse a name that is none of `Aggregation`.

    Raises:
        ConfigurationError: It is not; lists those there are.
    """
    if aggregation not in get_args(Aggregation):
        raise ConfigurationError(
            f"aggregation: expected one of {', '.join(get_args(Aggregation))}, got {aggregation!r}"
        )


def aggregate(outputs: Tensor, aggregation: Aggregation) -> Tensor:
    """Combine the members' outputs.

    Args:
        outputs: ``[S, n, C]``, logits; any shape ``[S, ...]`` for ``"mean"``.
        aggregation: See `Aggregation`.

    Returns:
        ``[n, C]``, at least 0 with rows that add up to 1, whose largest entry is the ensemble's class; for
        ``"majority"`` the share of the votes, where ties are decided by the mean softmax, which counts half a vote.
        The mean of the outputs for ``"mean"``.

    Raises:
        ConfigurationError: Outputs that are no logits, for all but ``"mean"``.
    """
    check_aggregation(aggregation)
    if aggregation == "mean":
        return outputs.mean(0)
    if outputs.ndim != 3:
        raise ConfigurationError(
            f"aggregation={aggregation!r}: expected a model that gives logits [n, C], got outputs of shape "
            f"{list(outputs.shape[1:])}; take aggregation='mean' for what is no classifier"
        )
    if aggregation == "mean_logits":
        return outputs.mean(0).softmax(1)
    probabilities = outputs.softmax(2).mean(0)
    if aggregation == "mean_softmax":
        return probabilities
    votes = F.one_hot(outputs.argmax(2), outputs.shape[2]).sum(0).to(probabilities.dtype)
    return (votes + probabilities / 2) / (len(outputs) + 0.5)
