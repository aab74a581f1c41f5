"""The result that every kind of job has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.scores import Better


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Scores of one run, before they are labelled and signed with their provenance.

    Attributes:
        values: ``[N, Q]`` float64, CPU.
        queries: ``Q`` names.
        better: Which direction of each query is the better one.
        certificate: What was checked.
        per_epoch: ``[E, N, Q]``, if asked for.
        standard_error: Of sampling, ``[N, Q]``, if something was sampled.
        provenance: What is particular to the result.
    """

    values: Tensor
    queries: tuple[str, ...]
    better: tuple[Better, ...]
    certificate: Certificate
    per_epoch: Tensor | None = None
    standard_error: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def answer_provenance(estimator: Any, query: BoundQuery, values: Tensor) -> dict[str, Any]:
    """Return what is particular to an estimator's answer to a query: both, the query's ``values``, ``[Q]``, and the
    number of examples it is asked of."""
    return {
        "estimator": repr(estimator),
        "query": repr(query.query),
        "query_values": values.tolist(),
        "validation_examples": query.data.size,
    }
