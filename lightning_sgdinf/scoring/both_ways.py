r"""The effect of close rebuilding on the scores: the ends of a few stretches, walked from two versions of their states.

The rebuilt states of a stretch end apart from the stored state :math:`s_b`. They are moved onto it, the more the later,

.. math:: \tilde s_t = \hat s_t + \frac{t - a}{b - a} (s_b - \hat s_b),

and the last steps of the stretch, where the drift is largest, are walked from both. The difference of the two walks'
scores is of the size of what the drift does to them; it is no bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import Adjoint, PulledStep
from lightning_sgdinf.log import Step
from lightning_sgdinf.replay import StretchEnd
from lightning_sgdinf.state import ModelState

STRETCHES, LENGTH = 2, 16
"""How many stretches are walked both ways, and how many of their last steps."""

Pull = Callable[[ModelState, Adjoint], PulledStep]
"""Pulls an adjoint back through a step taken from another state."""


@dataclass(slots=True)
class BothWays:
    """Walks the ends of some stretches a second time.

    Attributes:
        stretches: How many were walked both ways.
        steps: Their steps.
        largest: Largest difference of the two walks' scores of a stretch's end, over the largest of these scores.
    """

    stretches: int = 0
    steps: int = 0
    largest: float = 0.0
    _open: _End | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return self.steps > 0

    def begin(self, rebuilt: StretchEnd, stored: ModelState, adjoint: Adjoint) -> None:
        """Begin with a stretch, unless enough were looked at or its end is as recorded.

        Args:
            rebuilt: What its steps led to.
            stored: The stored state there.
            adjoint: There.
        """
        if self.stretches == STRETCHES:
            return
        gap = _combine(stored, rebuilt.state, lambda a, b: a - b)
        if any(bool(value.any()) for part, _, _, value in gap.items() if part == "param"):
            self.stretches += 1
            self._open = _End(rebuilt.begin, rebuilt.index, gap, adjoint)

    def see(self, step: Step, before: ModelState, pull: Pull) -> None:
        """Walk a step from the moved state, if it is one of the last of an open stretch."""
        end = self._open
        if end is None or not end.first <= step.index < end.index:
            return
        part = (step.index - end.begun) / (end.index - end.begun)
        moved = _combine(before, end.gap, lambda a, b: a + part * b)
        pulled = pull(moved, end.adjoint)
        end.adjoint = pulled.adjoint
        _add(end.moved, step, pulled.slopes)
        self.steps += 1

    def compare(self, step: Step, slopes: Tensor) -> None:
        """Compare with the slopes of the walk itself, ``[Q, B]``, when it has been at that step, too."""
        end = self._open
        if end is None or not end.first <= step.index < end.index:
            return
        _add(end.walked, step, slopes)
        if step.index == end.first:
            self.largest = max(self.largest, end.difference())
            self._open = None


@dataclass(slots=True)
class _End:
    """The end of a stretch under way: its gap, the second adjoint, and the sums of both walks, by example."""

    begun: int
    index: int
    gap: ModelState
    adjoint: Adjoint
    moved: dict[int, Tensor] = field(default_factory=dict)
    walked: dict[int, Tensor] = field(default_factory=dict)

    @property
    def first(self) -> int:
        return max(self.begun + 1, self.index - LENGTH)

    def difference(self) -> float:
        """Return the largest difference of a score over the largest score, of the query where that is most."""
        gaps = torch.stack([self.moved[j] - self.walked[j] for j in self.walked]).abs().amax(0)
        sizes = torch.stack([*self.walked.values()]).abs().amax(0)
        return float((gaps / sizes.clamp_min(torch.finfo(torch.float64).tiny)).max())


def _add(sums: dict[int, Tensor], step: Step, slopes: Tensor) -> None:
    columns = slopes.detach().to("cpu", torch.float64).T
    for example, column in zip(step.example_ids.tolist(), columns, strict=True):
        sums[example] = sums[example] + column if example in sums else column.clone()


def _combine(a: ModelState, b: ModelState, function: Callable[[Tensor, Tensor], Tensor]) -> ModelState:
    """Return a state with a function of the floating-point tensors that two states share; others are of the first."""

    def of(value: Tensor, other: Tensor | None) -> Tensor:
        fits = other is not None and value.is_floating_point() and other.shape == value.shape
        return function(value, other.to(value.device)) if fits and other is not None else value

    return replace(
        a,
        params={n: of(v, b.params.get(n)) for n, v in a.params.items()},
        buffers={n: of(v, b.buffers.get(n)) for n, v in a.buffers.items()},
        optimizer={
            n: {k: of(v, b.optimizer.get(n, {}).get(k)) if v.ndim else v for k, v in entries.items()}
            for n, entries in a.optimizer.items()
        },
    )
