"""What a cleansing strategy is asked, and what it answers.

A strategy reads scores and answers with a `Selection`: ids to leave out and ids to give another label. What is then
done with a selection (training again) is `lightning_sgdinf.cleansing.retrain`'s matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_sgdinf.cleansing.excess import OnExcess, lost_classes, report_excess
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.scores import Scores


@dataclass(frozen=True, slots=True)
class Trial:
    """One selection that was tried on held-out data.

    Attributes:
        count: How many examples it changed (0: none).
        value: Held-out loss or error after training again with it; lower is better.
        gain: Lower confidence bound of how much lower the value is than with nothing changed; ``None`` if nobody asked.
    """

    count: int
    value: float
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be done with which training examples.

    Attributes:
        drop: Ids to leave out, most harmful first, each once.
        relabel: Id to the class it shall be given, most harmful first; none of them in ``drop``.
        reason: Why these, in words.
        trace: What was tried on held-out data to choose them, by count; empty if nothing was.

    Raises:
        ConfigurationError: An id or label is not a whole number from 0 on, occurs twice, or is both dropped and
            relabelled.
    """

    drop: tuple[int, ...] = ()
    relabel: Mapping[int, int] = field(default_factory=dict)
    reason: str = ""
    trace: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        drop = tuple(_whole(j, "an id to drop") for j in self.drop)
        relabel = {_whole(j, "an id to relabel"): _whole(c, "a new label") for j, c in self.relabel.items()}
        if len(set(drop)) != len(drop):
            twice = sorted(j for j, times in Counter(drop).items() if times > 1)
            raise ConfigurationError(
                f"ids to drop: expected each once, got {twice[:5]} more than once; drop the repeats."
            )
        if both := sorted(set(drop) & set(relabel)):
            raise ConfigurationError(
                f"ids {both[:5]} are both dropped and relabelled; a selection does one of the two per id."
            )
        object.__setattr__(self, "drop", drop)
        object.__setattr__(self, "relabel", relabel)
        object.__setattr__(self, "trace", tuple(self.trace))

    def __len__(self) -> int:
        """Number of examples that are dropped or relabelled."""
        return len(self.drop) + len(self.relabel)

    def check(self, count: int) -> None:
        """Refuse ids that a training set of ``count`` examples does not have.

        Raises:
            ConfigurationError: An id is ``count`` or larger; names it.
        """
        if outside := [j for j in (*self.drop, *self.relabel) if j >= count]:
            raise ConfigurationError(
                f"expected ids below {count}, the size of the training set, got {outside[:5]}; was the selection made "
                "from scores of another data set?"
            )

    def weights(self, count: int) -> Tensor:
        """Example weights ``[count]`` float64, 0 for what is dropped and 1 for the rest."""
        self.check(count)
        weights = torch.ones(count, dtype=torch.float64)
        weights[list(self.drop)] = 0.0
        return weights

    def to_json(self) -> dict[str, Any]:
        """Plain values, for storing beside scores; ids of ``relabel`` become strings."""
        return {
            "drop": list(self.drop),
            "relabel": {str(j): c for j, c in self.relabel.items()},
            "reason": self.reason,
            "trace": [[t.count, t.value] if t.gain is None else [t.count, t.value, t.gain] for t in self.trace],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selection:
        """The inverse of `to_json`."""
        return cls(
            drop=tuple(data["drop"]),
            relabel={int(j): c for j, c in data["relabel"].items()},
            reason=data["reason"],
            trace=tuple(Trial(*trial) for trial in data["trace"]),
        )


@dataclass(frozen=True, kw_only=True)
class CleansingContext:
    """What a strategy may ask beyond the scores; each strategy says which of it it needs.

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
        """A number of examples to change, cut so that one of ``total`` is left as it is.

        Raises:
            ConfigurationError: It is too large, and that is refused.
        """
        if count < total:
            return count
        report_excess(
            f"number of examples to change: expected 0 to {total - 1} of {total}, got {count}", self.on_excess
        )
        return total - 1

    def checked(self, selection: Selection) -> Selection:
        """A selection, once it is known to leave something of every class; of any, if there are no labels.

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
            report_excess(
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
    """The ids of the ``count`` most harmful examples, the worst first.

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


def _whole(value: Any, what: str) -> int:
    try:
        number = index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigurationError(f"{what}: expected a whole number from 0 on, got {value!r}.")
    return number
