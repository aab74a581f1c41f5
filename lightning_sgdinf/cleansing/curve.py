"""Held-out loss and error against the number of examples removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from lightning_sgdinf.cleansing.base import CleansingContext
from lightning_sgdinf.cleansing.evaluate import Evaluation
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Retraining


def cleansing_curve(
    retraining: Retraining,
    ranking: Sequence[int],
    counts: Sequence[int],
    evaluate: Callable[[ModelState], Evaluation],
    context: CleansingContext | None = None,
) -> list[tuple[int, Evaluation]]:
    """Train again without the first ``m`` examples of a ranking, for several ``m``.

    The removed sets are nested: each is a prefix of the ranking.

    Args:
        retraining: How to train again.
        ranking: Ids, the first to be removed first, each once.
        counts: Increasing numbers ``m`` of removed examples; 0 is the training as it was.
        evaluate: Of a state on held-out data, e.g. a `StateEvaluation`.
        context: With its labels, says what becomes of counts that leave nothing of a class; all are let go if ``None``.

    Returns:
        ``(m, evaluation)`` for each count, in order.

    Raises:
        ConfigurationError: Counts are not increasing, or not in ``0 .. len(ranking)``, or one leaves nothing of a class
            and the context refuses that; nothing was trained then.
    """
    ids = tuple(int(j) for j in ranking)
    if any(a >= b for a, b in pairwise(counts)) or any(not 0 <= m <= len(ids) for m in counts):
        raise ConfigurationError(f"counts: expected increasing numbers from 0 to {len(ids)}, got {tuple(counts)}.")
    whole = Selection(drop=ids)
    selections = [Selection(drop=whole.drop[:m], reason=f"the first {m} of a ranking") for m in counts]
    if context is not None:
        selections = [context.checked(selection) for selection in selections]
    return [(len(selection), evaluate(retraining(selection).state)) for selection in selections]


def random_ranking(count: int, *, seed: int) -> tuple[int, ...]:
    """Return the ids ``0 .. count - 1`` in random order, the baseline of a curve; no global generator is touched.

    One permutation per seed: its prefixes are nested as those of any other ranking.
    """
    return tuple(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist())
