"""The suite that ships, on every update that forgets: on a run whose classes can be learnt, and forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, ForgettingError, StateNotStoredError
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.testing import ModelUpdateSuite
from lightning_sgdinf.testing.fingerprints import host_fingerprint
from lightning_sgdinf.testing.runs import NormalisedNet, SmallRun, small_run
from lightning_sgdinf.updates import CounterfactualReplay, ExtrapolatedReplay, Forgotten, ImpairedReplay
from lightning_sgdinf.updates.influence import FreezingDirection, InfluenceStep, OriginalDirection
from lightning_sgdinf.updates.masks import AllParameters, HighestUnits
from tests.adjoint.cases import thinned


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


CLASS = Selection(drop=(1, 4, 7, 10))
KNOWN = 3  # whose class the others teach, too
BAD: dict[str, tuple[Any, Selection, type[Exception], str]] = {
    "an id that there is not": (ExtrapolatedReplay(), Selection(drop=(1, 13)), ConfigurationError, r"below 13.*\[13\]"),
    "an empty set": (ExtrapolatedReplay(), Selection(), ConfigurationError, "an empty selection"),
    "a set that is forgotten": (
        ExtrapolatedReplay(forgotten=Forgotten(0.9)),
        Selection(drop=(1,)),
        ConfigurationError,
        "forgotten already",
    ),
    "a factor beyond its bound": (ExtrapolatedReplay(), Selection(drop=(KNOWN,)), ForgettingError, "accepted up to 3"),
    "a record without the states": (CounterfactualReplay("all"), CLASS, StateNotStoredError, "keep='every_step'"),
    "negative curvature": (
        InfluenceStep(OriginalDirection(0.0, "hessian"), AllParameters(), examples=None),
        CLASS,
        DivergenceError,
        "negative curvature",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_leaves_the_model_as_it_was(name: str) -> None:
    update, selection, error, message = BAD[name]
    run = small_run(learnable=True)
    log: Any = thinned(run.log, [6, 9]) if error is StateNotStoredError else run.log
    if "forgotten" in name:
        run.train.dataset.tensors[1][1] = 2  # type: ignore[attr-defined]  # it was trained as another
    before = host_fingerprint(run.model)
    with pytest.raises(error, match=message):
        InfluenceRunner(accelerator="cpu", progress=False).update(
            run.model, run.train, run.validation, log=log, update=update, selection=selection
        )
    assert host_fingerprint(run.model) == before


def test_labels_given_for_ids_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"each once, got \[8\] more than once"):
        Selection(drop=(8, 8, 8))
