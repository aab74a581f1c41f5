"""The control variate of sampled values: each player's gain, predicted by scores of the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators import SgdInfluence
from lightning_sgdinf.query import Query
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.scoring import Method, Settings, job_for


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Predicts what each example adds, as minus its influence score.

    The better sums of scores predict what leaving out many examples does (a high linear datamodelling score), the less
    is left to sample. A poor predictor does no harm but cost one walk: how far it is trusted is fitted.

    Attributes:
        estimator: Gives the scores; by default the exact derivative of the run, with the divisor that values have.
        query: Asked in place of the value's own, for values of a query without a gradient, such as an accuracy; each of
            its columns predicts one of the value's, or a single one all.
    """

    estimator: Method = field(default_factory=lambda: SgdInfluence(divisor="reduced"))
    query: Query | None = None


def predicted_gains(gains: Gains, run: OpenedRun, query: BoundQuery, members: Sequence[Sequence[int]]) -> Tensor:
    """Return what each player is predicted to add, float64 ``[P, Q]`` or ``[P, 1]``.

    Raises:
        ConfigurationError: Another number of queries, or one without a gradient.
    """
    asked = query if gains.query is None else replace(query, query=gains.query)
    settings = Settings(certificate="off", progress=run.progress)
    scores = job_for(gains.estimator, settings, run, lambda: asked).result().values
    if scores.shape[1] not in (1, len(query.names)):
        raise ConfigurationError(
            f"Gains(query): expected one query or as many as are valued ({len(query.names)}), got {scores.shape[1]}"
        )
    return -torch.stack([scores[list(ids)].sum(0) for ids in members])
