"""The ``k`` most harmful examples are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_sgdinf.arguments import whole_number
from lightning_sgdinf.cleansing.base import CleansingContext, most_harmful_ids
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


@final
@dataclass(frozen=True)
class TopK:
    """Drop the ``k`` most harmful examples, harmful in truth or not.

    Selections of growing ``k`` are nested. In a configuration file::

        _target_: lightning_sgdinf.cleansing.TopK
        k: 30

    Args:
        k: How many, from 0 on and below the number of training examples.

    Raises:
        ConfigurationError: ``k`` is negative.

    References:
        S. Hara, A. Nitanda, T. Maehara, Data Cleansing for Models Trained with SGD, NeurIPS 2019, section 7.2.
    """

    k: int

    def __post_init__(self) -> None:
        whole_number(self.k, "k", least=0)

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose what to drop; see `TopK`.

        Raises:
            ConfigurationError: There are not more than ``k`` training examples, or nothing is left of a class, and
                the context refuses that.
        """
        count = context.allowed(self.k, len(scores))
        drop = most_harmful_ids(scores, count, query)
        return context.checked(Selection(drop=drop, reason=f"the {count} most harmful examples"))
