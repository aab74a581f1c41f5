"""The suite that ships, on every update that forgets: on a run whose classes can be learnt, and forgotten."""

from __future__ import annotations

from lightning_sgdinf.selection import Selection
from lightning_sgdinf.testing import ModelUpdateSuite
from lightning_sgdinf.testing.runs import NormalisedNet, SmallRun, small_run
from lightning_sgdinf.updates import ExtrapolatedReplay, ImpairedReplay
from lightning_sgdinf.updates.influence import FreezingDirection, InfluenceStep
from lightning_sgdinf.updates.masks import HighestUnits


class Forgetting(ModelUpdateSuite):
    """What every update of this kind is tried on."""

    selection = Selection(drop=(1, 4, 7, 10))
    another = Selection(drop=(2, 5, 8, 11))
    relabelling = Selection(relabel={5: 1, 2: 1})

    def recorded(self) -> SmallRun:
        return small_run(make=NormalisedNet, learnable=True)


class TestExtrapolatedReplay(Forgetting):
    update = ExtrapolatedReplay(most=50)


class TestImpairedReplay(Forgetting):
    update = ImpairedReplay(epochs=1, parameters=HighestUnits(0.5))


class TestInfluenceStep(Forgetting):
    update = InfluenceStep(FreezingDirection(damping=10), HighestUnits(0.9), examples=5)
