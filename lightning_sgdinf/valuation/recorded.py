r"""The value of training on some examples, by the recorded run taken again with all others left out.

:math:`V(S)` is the query after the recorded run, with its batches, initial parameters, learning rates and random
numbers, in which only the losses of ``S`` count: the mean of a batch is over those of its examples that are in ``S``,
and a batch without any takes a step of zero gradient (momentum and weight decay go on). So :math:`V(\emptyset)` is the
query of the initial model, and :math:`V(\text{all})` that of the recorded one. Many such runs are taken at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import Query
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.truth import Counterfactuals
from lightning_sgdinf.valuation.utility import Groups, check_groups


class RecordedUtility:
    """A utility by counterfactual runs of a recorded one; see the module's text.

    Args:
        run: The recorded run.
        query: What is asked.
        groups: Example ids of each player; ``None`` for every example by itself.

    Attributes:
        members: Example ids of each player. An example that was never drawn adds nothing to any coalition; without
            groups it is no player, which changes no other's value.

    Raises:
        ConfigurationError: Groups that do not fit.
        UntappedLossError: Example weights do not reach the whole loss.
    """

    def __init__(self, run: OpenedRun, query: BoundQuery, groups: Groups | None = None) -> None:
        self.run, self.query, self.groups = run, query, groups
        self.members = _drawn(run) if groups is None else check_groups(groups, run.examples)
        self._player = torch.full((run.examples,), -1, dtype=torch.int64)
        for player, ids in enumerate(self.members):
            self._player[list(ids)] = player
        self._truth = Counterfactuals(run, query, divisor="reduced", progress=False)
        self._notes: dict[str, None] = {}

    @property
    def players(self) -> int:
        """See `Utility`."""
        return len(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """See `Utility`."""
        return self.query.names

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what counterfactual training had to say so far."""
        return tuple(self._notes)

    def values(self, coalitions: Tensor) -> Tensor:
        """See `Utility`.

        Raises:
            SgdInfluenceError: What `Counterfactuals.measure` raises.
        """
        left_out = self.left_out(coalitions)
        some = [row for row, ids in enumerate(left_out) if ids]
        base = self.run.once((self.query, "value"), lambda: self.query.value(self.run.model))
        values = base.repeat(len(coalitions), 1)
        if some:
            truth = self._truth.measure([left_out[row] for row in some])
            values[some] = values[some] + truth.values
            self._notes.update(dict.fromkeys(n for n in truth.notes if "at once, which need" not in n))
        return values

    def left_out(self, coalitions: Tensor) -> list[tuple[int, ...]]:
        """Return the ids that each coalition leaves out."""
        takes_part = torch.where(self._player >= 0, coalitions[:, self._player], True)
        return [tuple((~row).nonzero()[:, 0].tolist()) for row in takes_part]

    @property
    def key(self) -> str:
        """Return what tells these values from any others."""
        query = re.sub(r" at 0x[0-9a-f]+", "", repr(self.query.query))
        return repr((self.run.log.digest, query, self.names, self.members, self.run.objective.dtype))

    def reopen(self) -> tuple[Any, Callable[[ExitStack], RecordedUtility]]:
        """Return a key and a function that opens run, query and utility in another process.

        Raises:
            ConfigurationError: The run was opened from a log that has no path.
        """
        if self.run.reopen is None:
            raise ConfigurationError(
                "jobs: other processes open the log for themselves; give its path as log=, or use jobs=1"
            )
        return self.key, functools.partial(_open, self.run.reopen, self.query.query, self.groups)


def _open(reopen: Callable[[], Any], query: Query, groups: Groups | None, stack: ExitStack) -> RecordedUtility:
    torch.set_num_threads(1)  # as many processes as there are cores do the work side by side
    run = stack.enter_context(reopen())
    return RecordedUtility(run, BoundQuery.of(run, query, dtype=run.objective.dtype), groups)


def _drawn(run: OpenedRun) -> tuple[tuple[int, ...], ...]:
    """Return each example that took part in the run, as a group of one."""
    drawn = sorted({int(i) for step in run.log.steps(0, len(run.log)) for i in step.example_ids})
    return tuple((example,) for example in drawn)
