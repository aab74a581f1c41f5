"""The job that compares ensembles trained in shards with one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies import SisaJob
from lightning_sgdinf.studies.sisa import markdown
from tests.studies.test_lds import parts


def test_a_seed(tmp_path: Path) -> None:
    job = SisaJob(shards=(2,), slices=(1, 2), points=5, part=0.1)
    accuracy = job.run(parts(tmp_path))
    cells = [json.loads((tmp_path / f"ensemble_002_{r:03d}_0.json").read_text()) for r in (1, 2)]
    assert accuracy == cells[-1]["accuracy"]["mean_softmax"]
    for cell, slices in zip(cells, (1, 2), strict=True):
        assert cell["bit_for_bit"]
        assert cell["as_forecast"]
        assert cell["formula"] == (2 * slices + 1) / (6 * slices)
        assert len(cell["cost_of_one"]) == 5
    model = json.loads((tmp_path / "model_0.json").read_text())["updates"]
    assert model["exact replay"]["divergence"] == 0
    assert model["replay of the last epoch"]["divergence"] > 0
    assert model["exact replay"]["cost"] == 1  # gradients of dropped examples are computed, with weight 0
    table = (tmp_path / "table.md").read_text()
    assert "| 2 | 2 |" in table
    (tmp_path / "table.md").unlink()
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*_0.json")}
    assert job.run(parts(tmp_path)) == accuracy
    assert (tmp_path / "table.md").read_text() == table
    assert written == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*_0.json")}  # nothing was done again
    with pytest.raises(ConfigurationError, match="points: 5 there, 6 now"):
        SisaJob(shards=(2,), slices=(1,), points=6, part=0.1).run(parts(tmp_path))


def test_results_of_several_seeds_share_a_folder(tmp_path: Path) -> None:
    settings = [
        SisaJob()._settings(
            parts(tmp_path, seed=seed, config={"dataset": {"seed": seed, "size": 3}}), parts(tmp_path).dataset
        )
        for seed in (0, 1)
    ]
    assert settings[0] == settings[1]
    assert settings[0]["dataset"] == {"size": 3}


def test_the_table_has_means_over_seeds_and_what_was_refused() -> None:
    accuracy = {"one": 0.5, "majority": 0.6, "mean_softmax": 0.7, "mean_logits": 0.8}
    cell = {"shards": 5, "slices": 1, "cost_of_one": [0.1, 0.3], "formula": 0.2, "cost_of_part": 0.4}
    cells = [{**cell, "accuracy": {k: v + d for k, v in accuracy.items()}, "bit_for_bit": d == 0} for d in (0.0, 0.1)]
    update = {"accuracy": 0.9, "cost": 0.05, "seconds": 1.0, "divergence": 0.0}
    models = [{"updates": {"a": update, "b": {"refused": "no"}}}, {"updates": {"a": update, "b": update}}]
    lines = markdown(cells, models).splitlines()
    assert lines[2] == (
        "| 5 | 1 | 0.550 ± 0.071 | 0.650 ± 0.071 | 0.750 ± 0.071 | 0.850 ± 0.071 | 0.200 ± 0.000 | 0.200 "
        "| 0.400 ± 0.000 | 1 of 2 | 2 |"
    )
    assert lines[-1] == "| b | 0.900 | 0.050 | 1.000 | 0.000 | 1 refused for 1 |"


def test_refusals() -> None:
    with pytest.raises(ConfigurationError, match="expected shards, slices, points >= 1"):
        SisaJob(shards=())
