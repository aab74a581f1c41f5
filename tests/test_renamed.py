"""Names of earlier releases, each with the one that it has now."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

OLD = {
    "lightning_sgdinf.cleansing.Chosen": "lightning_sgdinf.cleansing.StrategyOutcome",
    "lightning_sgdinf.cleansing.ExcessWarning": "lightning_sgdinf.cleansing.InfeasibleWarning",
    "lightning_sgdinf.cleansing.how_reliable": "lightning_sgdinf.cleansing.measure_reliability",
    "lightning_sgdinf.cleansing.Outcomes": "lightning_sgdinf.cleansing.RetrainingCache",
    "lightning_sgdinf.cleansing.Retrained": "lightning_sgdinf.updates.Updated",
    **{
        f"lightning_sgdinf.cleansing.{name}": f"lightning_sgdinf.updates.{name}"
        for name in (
            *("ReducedDataset", "RelabelledDataset", "Retraining", "cleansed_dataset", "replace_label"),
            *("load_state", "state_of", "with_state"),
        )
    },
}


def typed(path: str) -> Any:
    home, _, name = path.rpartition(".")
    return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize(("old", "new"), OLD.items(), ids=OLD)
def test_an_old_name_gives_what_it_gave_and_says_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new};"):
        thing = typed(old)
    assert thing is typed(new)
