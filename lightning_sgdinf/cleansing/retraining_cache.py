"""Evaluations after training again with selections, each trained once however often it is asked for.

Strategies that choose on held-out data train again with one selection after another, and several of them on the same
ranking with the same ones. Here each is trained once and measured on every data set that is of interest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Literal, final

from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Retraining

logger = printable_logger(__name__)

Metric = Literal["loss", "error"]


@final
class RetrainingCache:
    """Evaluations after training again, by selection.

    Args:
        retraining: How to train again.
        measures: How to evaluate a state, by name of the data, e.g. a `StateEvaluation` of the choosing half of the
            validation set and one of the test set; `mean` and `each` need such evaluations.

    Attributes:
        trained: How many times it trained.
    """

    def __init__(self, retraining: Retraining, measures: Mapping[str, Callable[[ModelState], Any]]) -> None:
        self._retraining = retraining
        self._measures = dict(measures)
        self._known: dict[object, Mapping[str, Any]] = {}
        self.trained = 0

    def __call__(self, selection: Selection) -> Mapping[str, Any]:
        """Return the evaluations by name, after training again with a selection."""
        key = frozenset(selection.drop), frozenset(selection.relabel.items())
        if key not in self._known:
            began = perf_counter()
            state = self._retraining(selection).state
            self.trained += 1
            self._known[key] = {name: measure(state) for name, measure in self._measures.items()}
            logger.info("trained again with %d examples changed in %.1f s", len(selection), perf_counter() - began)
        return self._known[key]

    def mean(self, name: str, metric: Metric = "loss") -> Callable[[Selection], float]:
        """Return the function that `CleansingContext.evaluate` asks for.

        Args:
            name: Of the data.
            metric: Loss or error. The error is what matters in the end, the loss is less noisy on few examples.

        Raises:
            ConfigurationError: There is no such data or metric.
        """
        self._check(name, metric)
        return lambda selection: getattr(self(selection)[name], metric)

    def each(self, name: str, metric: Metric = "loss") -> Callable[[Selection], Tensor]:
        """Return the function that `CleansingContext.evaluate_each` asks for; arguments as for `mean`."""
        self._check(name, metric)
        field = {"loss": "losses", "error": "wrong"}[metric]
        return lambda selection: getattr(self(selection)[name], field)

    def _check(self, name: str, metric: str) -> None:
        if name not in self._measures:
            raise ConfigurationError(f"measures: expected one of {', '.join(self._measures)}, got {name!r}")
        if metric not in ("loss", "error"):
            raise ConfigurationError(f"metric: expected 'loss' or 'error', got {metric!r}.")
