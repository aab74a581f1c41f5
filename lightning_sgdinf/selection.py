"""Training examples selected to be dropped or relabelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Trial:
    """One selection that was tried on held-out data.

    Attributes:
        count: Number of examples it changed (0: none).
        value: Held-out loss or error after training again with it; lower is better.
        gain: Lower confidence bound of how much lower the value is than with nothing changed; ``None`` if nobody asked.
    """

    count: int
    value: float
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Training examples to drop and to relabel.

    Attributes:
        drop: Ids to leave out, most harmful first, each once.
        relabel: Id to the class it shall be given, most harmful first; none of them in ``drop``.
        reason: The reason for these, in words.
        trace: Selections tried on held-out data to choose them, by count; empty if none was.

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
        """Return the number of examples that are dropped or relabelled."""
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
        """Return example weights ``[count]`` float64, 0 for dropped examples and 1 for the others."""
        self.check(count)
        weights = torch.ones(count, dtype=torch.float64)
        weights[list(self.drop)] = 0.0
        return weights

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for storing beside scores; ids of ``relabel`` become strings."""
        return {
            "drop": list(self.drop),
            "relabel": {str(j): c for j, c in self.relabel.items()},
            "reason": self.reason,
            "trace": [[t.count, t.value] if t.gain is None else [t.count, t.value, t.gain] for t in self.trace],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selection:
        """Return the selection that `to_json` made plain."""
        return cls(
            drop=tuple(data["drop"]),
            relabel={int(j): c for j, c in data["relabel"].items()},
            reason=data["reason"],
            trace=tuple(Trial(*trial) for trial in data["trace"]),
        )


def _whole(value: Any, what: str) -> int:
    try:
        number = -1 if isinstance(value, bool) else index(value)  # a mask in the place of ids
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigurationError(f"{what}: expected a whole number from 0 on, got {value!r}.")
    return number
