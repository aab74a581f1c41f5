"""Scores as a notebook shows them: the result in words, and both ends of the ranking."""

from __future__ import annotations

import html
from typing import Any

SHOWN = 10


def html_of(scores: Any) -> str:
    """Return HTML: what was found for the first query, what is known of it, its most harmful and most helpful examples.

    Args:
        scores: `lightning_sgdinf.scores.Scores`.
    """
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in scores.summary())
    others = f"<p>Other queries: {html.escape(', '.join(scores.queries[1:]))}.</p>" if len(scores.queries) > 1 else ""
    tables = [scores.most_harmful(SHOWN)._repr_html_(reach=False), scores.most_helpful(SHOWN)._repr_html_(reach=False)]
    ends = "".join(
        f"<h4>{title}</h4>{table}" for title, table in zip(("Most harmful", "Most helpful"), tables, strict=True)
    )
    return f"{said}{ends}{others}"
