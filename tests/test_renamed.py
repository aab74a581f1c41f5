"""Names of earlier releases, each with the one that it has now."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lightning_sgdinf.tasks.retraining import Counterfactual
from lightning_sgdinf.updates import CounterfactualReplay

OLD = {
    "lightning_sgdinf.tasks.cleansing.CleansingJob": "lightning_sgdinf.studies.CleansingJob",
    "lightning_sgdinf.tasks.job.Job": "lightning_sgdinf.studies.Job",
    "lightning_sgdinf.tasks.job.OF_THE_MAIN_JOB": "lightning_sgdinf.studies.PIPELINE_GROUPS",
    "lightning_sgdinf.tasks.job.Parts": "lightning_sgdinf.studies.Parts",
    "lightning_sgdinf.tasks.lds.LdsJob": "lightning_sgdinf.studies.LdsJob",
    "lightning_sgdinf.tasks.lie.LieJob": "lightning_sgdinf.studies.AgreementJob",
    "lightning_sgdinf.tasks.retraining.Scratch": "lightning_sgdinf.studies.Scratch",
    "lightning_sgdinf.tasks.study.ReportSettings": "lightning_sgdinf.studies.ReportSettings",
}


def typed(path: str) -> Any:
    home, _, name = path.rpartition(".")
    return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize(("old", "new"), OLD.items(), ids=OLD)
def test_an_old_name_gives_what_it_gave_and_says_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new};"):
        thing = typed(old)
    assert thing is typed(new)


def test_an_old_default_stays_with_its_name() -> None:
    with pytest.warns(DeprecationWarning, match="Counterfactual is now lightning_sgdinf.updates.CounterfactualReplay;"):
        assert Counterfactual() == CounterfactualReplay(1) != CounterfactualReplay()
