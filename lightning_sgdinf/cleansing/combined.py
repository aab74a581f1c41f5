"""Two rankings in one: what the first calls harmful, in the order of the second."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores


def combined(first: Scores, then: Scores, query: int | str = 0) -> Scores:
    """Return a ranking: examples that one calls harmful come first, in the order of the other; then the rest, likewise.

    ``combined(blame, margins)`` takes the worst margins among what failures blame, ``combined(margins, blame)`` what
    they blame most among labels that the model contradicts. Values are minus the places in that order: a ranking only.

    Args:
        first: Decides who comes first: whose harm is above 0 (for a margin, whose margin is below 0).
        then: Orders both parts.
        query: Name or position of the query of ``first``; of ``then`` the first one is taken.

    Raises:
        ConfigurationError: They rank different numbers of examples.
    """
    if len(first) != len(then):
        raise ConfigurationError(
            f"combined: expected two rankings of the same examples, got {len(first)} and {len(then)} examples"
        )
    harmful = first.harm(query) > 0
    order = then.order()
    order = torch.cat([order[harmful[order]], order[~harmful[order]]])
    values = torch.empty(len(order), dtype=torch.float64)
    values[order] = torch.arange(len(order), dtype=torch.float64) - len(order)
    return replace(
        then,
        values=values[:, None],
        queries=(f"{then.queries[0]} among {first.queries[first.query_index(query)]}",),
        better=("order",),
        per_epoch=None,
        verified=None,
        standard_error=None,
        certificate=None,
        provenance={**then.provenance, "first": dict(first.provenance)},
    )
