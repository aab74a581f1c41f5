"""Leaving one out: what an example adds to all the others.

The value that influence scores estimate, measured by ``N`` trainings. Of redundant examples each is worth almost
nothing by it; Shapley values look at smaller coalitions, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.valuation.base import Value
from lightning_sgdinf.valuation.play import Asking
from lightning_sgdinf.valuation.schemes import Ends
from lightning_sgdinf.valuation.utility import Utility, everybody
from lightning_sgdinf.valuation.valuation import Valuation


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Value):
    """Values by leaving one player out of all; nothing is sampled.

    Batches are divided by the number of examples that are left. `InfluenceRunner.counterfactuals` measures the same
    with the other divisor, at single steps, and keeps it in a file.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.valuation.LeaveOneOut
    """

    def value(self, utility: Utility, *, gains: Tensor | None = None, progress: bool = False) -> Valuation:
        """Return the values of a utility's players; see `Value`."""
        del gains, progress
        began, process = time.perf_counter(), time.process_time()
        players = utility.players
        others = ~torch.eye(players, dtype=torch.bool)
        asked = torch.cat([everybody(utility), torch.zeros(1, players, dtype=torch.bool), others])
        values = Asking(utility, self.jobs)(asked)
        return Valuation(
            values=values[0] - values[2:],
            standard_error=None,
            queries=utility.names,
            ends=Ends(values[1], values[0]),
            rounds=1,
            trainings=players,
            agreement=None,
            seconds=time.perf_counter() - began,
            process_seconds=time.process_time() - process,
            exact=True,
        )

    @property
    def meaning(self) -> str:
        """See `Value`."""
        left_out = "example was" if self.groups is None else "group of examples was"
        return f"LeaveOneOut: every {left_out} really left out of the training, whose means are over what is left."
