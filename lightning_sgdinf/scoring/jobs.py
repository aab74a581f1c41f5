"""The kind of job that a way to answer calls for: the one place that tells the kinds apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from lightning_sgdinf import baselines, estimators
from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.arguments import require_instance
from lightning_sgdinf.baselines import Baseline
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators import DirectEstimator, Estimator
from lightning_sgdinf.estimators.question import AnsweringEstimator
from lightning_sgdinf.replay import OpenedRun, RowShards
from lightning_sgdinf.scoring.baseline_job import BaselineJob
from lightning_sgdinf.scoring.direct_job import DirectJob
from lightning_sgdinf.scoring.settings import Settings
from lightning_sgdinf.scoring.walk_job import WalkJob

Method: TypeAlias = Estimator | DirectEstimator | Baseline
"""A way to answer: by the walk, without it, or without a query."""

Job: TypeAlias = WalkJob | DirectJob | BaselineJob
"""A run and a way to answer, ready: ``result()`` gives a `JobResult`."""


def require_method(method: Any) -> None:
    """Refuse what is no way to answer, such as a class or its name.

    Raises:
        ConfigurationError: Says what to write.
    """
    known = (*vars(estimators), *vars(baselines))
    names = ["SgdInfluence", *(name for name in known if name[:1].isupper())]
    require_instance(method, "estimator", ("visit", "estimate", "answer", "rank"), names)


def asks_a_query(method: Method) -> bool:
    """Return true if a method answers a query, and so needs validation data; a baseline does not."""
    return not isinstance(method, Baseline)


def job_for(
    method: Method, settings: Settings, run: OpenedRun, bind: Callable[[], BoundQuery], team: RowShards | None = None
) -> Job:
    """Return the job that a method calls for.

    Args:
        method: How to answer.
        settings: How to go about it.
        run: Record, model and data.
        bind: Binds the query; called if the method answers one.
        team: This process among several, if there are several.

    Raises:
        ConfigurationError: The method is of no known kind.
    """
    require_method(method)
    if callable(getattr(method, "answer", None)) and not isinstance(method, DirectEstimator):
        method = AnsweringEstimator(method)
    if isinstance(method, Baseline):
        return BaselineJob(run=run, baseline=method)
    if isinstance(method, DirectEstimator):
        return DirectJob(settings=settings, run=run, query=bind(), estimator=method)
    if isinstance(method, Estimator):
        return WalkJob(settings=settings, run=run, query=bind(), estimator=method, team=team)
    raise ConfigurationError(
        f"estimator: expected an Estimator (visit), a DirectEstimator (estimate) or a Baseline (rank), got "
        f"{type(method).__name__}"
    )
