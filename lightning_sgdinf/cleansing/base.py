"""The question to a cleansing strategy and its answer.

A strategy reads scores and answers with a `Selection`: ids to leave out and ids to give another label. What is then
done with a selection (training again) is `lightning_sgdinf.updates.counterfactual`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_sgdinf.cleansing.infeasible import OnExcess, lost_classes, report_infeasible
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.selection import Selection


@dataclass(frozen=True, kw_only=True)
class CleansingContext:
    """Answers that a strategy may ask for beyond the scores; each strategy says which of them it needs.

    Attributes:
        labels: Given class of every training example, whole numbers ``[N]``; ``None`` if there are none.
        predictions: Gives the trained model's class, ``[K]``, for ``K`` training ids; asked only for the ids that
            matter.
        evaluate: Gives the loss or error, lower is better, after training again with a selection. It must be measured
            on validation examples that neither the scores nor the final result are computed from.
        evaluate_each: The same of every one of these examples, ``[V]``, in the same order each time.
        on_excess: What becomes of a selection that leaves no example, or none of a class that ``labels`` has.
        seed: For strategies that draw.
    """

    labels: Tensor | None = None
    predictions: Callable[[Sequence[int]], Tensor] | None = None
    evaluate: Callable[[Selection], float] | None = None
    evaluate_each: Callable[[Selection], Tensor] | None = None
    on_excess: OnExcess = "refuse"
    seed: int = 0

    def allowed(self, count: int, total: int) -> int:
        """Return a number of examples to change, cut so that one of ``total`` is left as it is.

        Raises:
            ConfigurationError: It is too large, and that is refused.
        """
        if count < total:
            return count
        report_infeasible(
            f"number of examples to change: expected 0 to {total - 1} of {total}, got {count}", self.on_excess
        )
        return total - 1

    def checked(self, selection: Selection) -> Selection:
        """Return a selection, once it is known to leave something of every class; of any, if there are no labels.

        Raises:
            ConfigurationError: It leaves nothing of a class, and that is refused; or the labels are not classes.
        """
        if self.labels is None:
            return selection
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ConfigurationError(
                f"labels: expected a class, a whole number, for each training example, got {self.labels.dtype} of "
                f"shape {list(self.labels.shape)}"
            )
        if lost := lost_classes(self.labels, selection.drop, dict(selection.relabel)):
            report_infeasible(
                f"without {len(selection.drop)} examples and with {len(selection.relabel)} relabelled, nothing is left "
                f"of class {', '.join(map(str, lost))}",
                self.on_excess,
            )
        return selection


class CleansingStrategy(Protocol):
    """Scores in, a selection out."""

    def select(self, scores: Scores, context: CleansingContext, query: int | str = 0) -> Selection:
        """Choose what to drop or relabel.

        Args:
            scores: Of all ``N`` training examples.
            context: What else may be asked.
            query: Position or name of the query to go by.

        Returns:
            The selection, with its reason.
        """
        ...


def most_harmful_ids(scores: Scores, count: int, query: int | str = 0) -> tuple[int, ...]:
    """Return the ids of the ``count`` most harmful examples, the worst first.

    Args:
        scores: Of ``N`` examples.
        count: In ``[0, N - 1]``: a training set of nothing cannot be trained on.
        query: Position or name of the query.

    Raises:
        ConfigurationError: ``count`` is outside its range.
    """
    total = len(scores)
    if not 0 <= count < total:
        raise ConfigurationError(f"number of examples to change: expected 0 to {total - 1} of {total}, got {count}.")
    return tuple(scores.order(query)[:count].tolist())
