"""The job that gives every estimator its linear datamodelling score."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lightning_sgdinf.baselines import RandomBaseline
from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.estimators import LastEpochs, SgdInfluence
from lightning_sgdinf.evaluation import random_subsets
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.studies.lds import LdsJob, markdown
from lightning_sgdinf.truth import Truth
from lightning_sgdinf.zoo import Digits, ImageData, mlp

N, SUBSETS, QUERIES = 40, 12, 3


def parts(folder: Path, **changes: Any) -> Parts:
    quiet = {
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    given = Parts(
        dataset=ImageData(Digits(), train_size=N, val_size=30, test_size=10, batch_size=20),
        network=partial(mlp, hidden=(4,), activation="tanh"),
        trainer=partial(lightning.Trainer, max_epochs=2, accelerator="cpu", **quiet),
        runner=partial(InfluenceRunner, accelerator="cpu"),
        folder=folder,
        choices={"model": "mlp", "optimizer": "sgd"},
        optimizer=partial(torch.optim.SGD, lr=0.3),
    )
    return replace(given, **changes)


def job(**changes: Any) -> LdsJob:
    methods = {"sgd_influence": SgdInfluence(), "last_epochs": LastEpochs(1), "random": RandomBaseline(seed=1)}
    removals = {"half": {"part": 0.5, "divisor": "reduced"}, "tenth": {"part": 0.1}}
    given = {"methods": methods, "removals": removals, "subsets": SUBSETS, "queries": QUERIES, "resamples": 30}
    return LdsJob(**{**given, **changes})


def test_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truths: list[Truth] = []
    scores: list[Scores] = []
    for name, kept in (("counterfactuals", truths), ("run", scores)):
        original = getattr(InfluenceRunner, name)

        def spy(self: Any, *args: Any, original: Any = original, kept: Any = kept, **more: Any) -> Any:
            kept.append(original(self, *args, **more))
            return kept[-1]

        monkeypatch.setattr(InfluenceRunner, name, spy)
    given = parts(tmp_path, optimizer=partial(torch.optim.SGD, lr=5.0))  # so large that it amplifies
    value = job().run(given)
    assert [t.leave_out for t in truths] == [random_subsets(N, SUBSETS, part=p) for p in (0.5, 0.1)]
    assert [t.provenance["divisor"] for t in truths] == ["reduced", "kept"]
    members = torch.zeros(SUBSETS, N, dtype=torch.float64)
    for row, one in enumerate(truths[0].leave_out):
        members[row, list(one)] = 1
    predicted = members @ scores[0].values
    expected = [spearmanr(predicted[:, q], truths[0].values[:, q]).statistic for q in range(QUERIES)]
    assert value == pytest.approx(np.mean(expected))
    found = json.loads((tmp_path / "mlp_sgd_0.json").read_text())
    assert found["scores"]["half"]["sgd_influence"]["mean"] == value
    assert set(found["scores"]["tenth"]) == {"sgd_influence", "last_epochs", "random"}
    assert found["failed"] == {}
    whole, last = (s.certificate.amplification for s in scores[:2] if s.certificate is not None)
    assert whole is not None
    assert last is not None
    assert found["amplification"] == whole.factor > last.factor
    assert {"training", "truth, half", "sgd_influence"} <= set(found["seconds"])
    done = len(truths)
    assert job().run(given) == value
    assert len(truths) == done
    with pytest.raises(ConfigurationError, match="has results of other settings"):
        job(queries=2).run(given)


def test_a_method_that_fails_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(SgdInfluence):
        def first_step(self, log: Any) -> int:
            raise UnsupportedRunError("not this one")

    methods = {"sgd_influence": SgdInfluence(), "failing": Failing()}
    job(methods=methods, removals={"half": {"part": 0.5}}).run(parts(tmp_path))
    found = json.loads((tmp_path / "mlp_sgd_0.json").read_text())
    assert found["failed"] == {"failing": "UnsupportedRunError: not this one"}
    assert "failing gave nothing" in capsys.readouterr().out


def test_the_table_has_means_over_seeds() -> None:
    def cell(seed: int, mean: float, half: float) -> dict[str, Any]:
        score = {"mean": mean, "low": mean - half, "high": mean + half}
        return {
            "model": "mlp",
            "optimizer": "sgd",
            "seed": seed,
            "settings": {"removals": {"half": {"part": 0.5}}},
            "scores": {"half": {"exact": score}},
            "validation_error": 0.1 * (1 + seed),
            "amplification": 2.0 + seed,
        }

    adamw = {**cell(0, 0.25, 0.1), "optimizer": "adamw", "amplification": None}
    page = markdown([cell(0, 0.5, 0.03), cell(1, 0.7, 0.04), adamw])
    assert page.splitlines() == [
        "| half: 50 % left out, divisor kept | mlp, sgd | mlp, adamw |",
        "| --- | --- | --- |",
        "| exact | 0.60 ± 0.03 | 0.25 ± 0.10 |",
        "| seeds | 2 | 1 |",
        "| validation error | 15.0 % | 10.0 % |",
        "| amplification | 2.5 |  |",
    ]


def test_mistakes(tmp_path: Path) -> None:
    for wrong in ({"subsets": 9}, {"queries": 0}, {"methods": {}}, {"removals": {}}):
        with pytest.raises(ConfigurationError, match="expected subsets >= 10"):
            job(**wrong)
    with pytest.raises(ConfigurationError, match="expected images"):
        job().run(parts(tmp_path, dataset=object()))
