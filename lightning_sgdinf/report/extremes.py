"""Both ends of a ranking as one table with pictures and contributions, for loggers that can show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lightning_sgdinf.ranking import Ranking
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.model import ReportData, collect_contributions
from lightning_sgdinf.report.sparkline import harm_per_epoch
from lightning_sgdinf.report.tables import Table, ranking_table

_LONGEST_TEXT = 1000


@dataclass(frozen=True, eq=False)
class Extremes:
    """The most harmful and the most helpful examples, in the order of their ranks.

    Attributes:
        table: Their rows as plain cells.
        example_ids: One per row.
        examples: What is known of them, by id.
        harm: Per row what each epoch contributed, positive for harm, ``[E]``; ``None`` if that was not kept or
            there was one epoch.
    """

    table: Table
    example_ids: tuple[int, ...]
    examples: Mapping[int, Example]
    harm: tuple[np.ndarray, ...] | None

    @property
    def has_images(self) -> bool:
        """True if there is a picture of any."""
        return any(example.image is not None for example in self.examples.values())


def collect_extremes(data: ReportData) -> Extremes:
    """Return the shown examples of a report as one table named ``ranking``."""
    ranking = _joined(
        data.scores.most_harmful(data.shown, data.query), data.scores.most_helpful(data.shown, data.query)
    )
    table = ranking_table(data, ranking, "ranking")
    examples = {i: data.examples[i] for i in ranking.example_ids if i in data.examples}
    texts = [examples[i].text[:_LONGEST_TEXT] if i in examples else "" for i in ranking.example_ids]
    if any(texts):
        table = table.with_column("text", texts)
    harm = None
    contributions = collect_contributions(data)
    if contributions is not None:
        harm = tuple(harm_per_epoch(contributions[:, i], data.better) for i in ranking.example_ids)
    return Extremes(table=table, example_ids=ranking.example_ids, examples=examples, harm=harm)


def _joined(harmful: Ranking, helpful: Ranking) -> Ranking:
    """Return one ranking of both; nobody is in it twice."""
    known = set(harmful.example_ids)
    rest = [place for place, i in reversed(list(enumerate(helpful.example_ids))) if i not in known]

    def both(first: tuple, second: tuple) -> tuple:
        return (*first, *(second[place] for place in rest))

    return replace(
        harmful,
        example_ids=both(harmful.example_ids, helpful.example_ids),
        scores=both(harmful.scores, helpful.scores),
        ranks=both(harmful.ranks, helpful.ranks),
        labels=None if harmful.labels is None else both(harmful.labels, helpful.labels or ()),
        verified=None if harmful.verified is None else both(harmful.verified, helpful.verified or ()),
        standard_errors=None
        if harmful.standard_errors is None
        else both(harmful.standard_errors, helpful.standard_errors or ()),
    )
