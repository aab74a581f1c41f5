r"""The cost of unlearning, known before it begins.

Of one example, drawn uniformly, a part :math:`(2R + 1) / (3RS)` of the training of the whole ensemble; :math:`K` of
them are in :math:`S (1 - (1 - 1/S)^K)` shards on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from lightning_sgdinf.ensembles.plan import ShardPlan
from lightning_sgdinf.ensembles.training import StageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Work of making an ensemble forget.

    Attributes:
        shards: Number of shards that are trained again, in part or whole.
        of_shards: Number of shards.
        visits: Example gradients.
        share: ``visits`` over those of training the whole ensemble with every example.
        seconds: One shard after another, at the mean speed of the stages that are on disk; ``None`` if there are none.
    """

    shards: int
    of_shards: int
    visits: int
    share: float
    seconds: float | None

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", about {self.seconds:.1f} s one after another"
        return (
            f"{self.shards} of {self.of_shards} shards, {self.visits} example gradients, {100 * self.share:.1f} % of "
            f"training the ensemble{time}"
        )


def forecast(
    plan: ShardPlan, ids: AbstractSet[int], forgotten: AbstractSet[int], records: Sequence[StageRecord] = ()
) -> Cost:
    """Compute the cost of forgetting some examples.

    Args:
        plan: Who is trained on what.
        ids: To be forgotten.
        forgotten: Before; their training is not done again.
        records: Stages that were trained, for their speed.
    """
    new = ids - forgotten
    starts = {shard: plan.first_stage(shard, new) for shard in range(plan.shards)}
    visits = sum(plan.visits(shard, forgotten | ids, first) for shard, first in starts.items() if first is not None)
    whole = sum(plan.visits(shard, frozenset()) for shard in range(plan.shards))
    known = sum(record.visits for record in records)
    return Cost(
        shards=sum(first is not None for first in starts.values()),
        of_shards=plan.shards,
        visits=visits,
        share=visits / whole,
        seconds=visits * sum(record.seconds for record in records) / known if known else None,
    )
