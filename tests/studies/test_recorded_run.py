"""One way to train and record, and a study of one's own that goes it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lightning_sgdinf import RunLog, TrajectoryRecorder
from lightning_sgdinf.studies import Parts
from lightning_sgdinf.studies.cache import load_or_compute
from lightning_sgdinf.studies.job import ignored_groups
from lightning_sgdinf.studies.recorded_run import StoredRun, TrainedRun
from lightning_sgdinf.tasks.main import main
from tests.studies.test_cleansing import data, parts


def weights(run: TrainedRun) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_the_record_changes_nothing_and_the_seed_all(tmp_path: Path) -> None:
    training = parts(tmp_path).training(data(), 3)
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    recorded = training.fit(recorder=recorder, data={"datamodule": data()})
    torch.rand(7)
    plain = training.fit(data={"datamodule": data()})
    assert torch.equal(weights(recorded), weights(plain))
    assert recorded.metrics == plain.metrics
    assert 0 <= plain.metrics["val_accuracy"] <= 1
    other = parts(tmp_path).training(data(), 4).fit(data={"datamodule": data()})
    assert not torch.equal(weights(other), weights(plain))
    with RunLog.open(tmp_path / "run.tlog") as log:
        final = log.state(len(log)).params
    assert torch.equal(torch.cat([value.flatten() for value in final.values()]), weights(recorded))


def test_batches_of_a_data_set_come_in_the_order_of_the_seed(tmp_path: Path) -> None:
    one, two = (parts(tmp_path).training(data(), 3).fit_dataset(data().train_set, data()) for _ in range(2))
    assert torch.equal(weights(one), weights(two))
    in_data_order = parts(tmp_path).training(data(), 3).fit(data={"datamodule": data()})  # that of the data's seed, 0
    assert not torch.equal(weights(one), weights(in_data_order))


def test_a_run_is_trained_once_and_again_if_its_record_was_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seeds: list[int] = []

    def training(seed: int) -> Any:
        def train(recorder: TrajectoryRecorder) -> TrainedRun:
            seeds.append(seed)
            return parts(tmp_path).training(data(), seed).fit_dataset(data().train_set, data(), recorder)

        return train

    first = StoredRun(tmp_path / "run", training(0), "final")
    again = StoredRun(tmp_path / "run", training(1), "final")
    assert (seeds, again.about) == ([0], first.about)
    assert first.about["steps"] == 8
    first.remove_record()
    with first.log() as log:
        assert log.state_indices.tolist()[-1] == 8
    assert seeds == [0, 0]
    assert "led elsewhere" not in caplog.text
    again.remove_record()
    again.final_state()
    assert seeds == [0, 0, 1]
    assert "training led elsewhere than the first time" in caplog.text
    assert again.about["final_state"] != first.about["final_state"]


@dataclass(frozen=True, kw_only=True)
class CountSteps:
    """How many steps a run has, times a factor."""

    ignored_groups: ClassVar[dict[str, str]] = {"cleansing": "nothing is left out here"}

    factor: float = 1.0

    def run(self, parts: Parts) -> float:
        def compute() -> int:
            recorder = TrajectoryRecorder(parts.folder / "run.tlog")
            parts.training(parts.dataset, parts.seed).fit(recorder=recorder, data={"datamodule": parts.dataset})
            with RunLog.open(recorder.path) as log:
                return len(log)

        return self.factor * load_or_compute(parts.folder / "steps.json", compute)


def test_a_study_of_one_s_own(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("sgdinf", f"+job._target_={__name__}.CountSteps", "+job.factor=2.0", "hydra.run.dir=out", "~logger"),
        *("dataset.train_size=48", "dataset.val_size=60", "dataset.test_size=60", "dataset.batch_size=16"),
        *("model=logreg", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert '"result": 12.0' in (in_folder / "out" / "summary.json").read_text()
    main()  # with the steps of the first time: no second record is written over the first
    monkeypatch.setattr(sys, "argv", [*arguments, "cleansing=negative"])
    with pytest.raises(SystemExit):
        main()
    assert "does not read cleansing: nothing is left out here" in capsys.readouterr().err


def test_the_former_name_of_ignored_groups() -> None:
    class Former:
        leaves_aside: ClassVar[dict[str, str]] = {"report": ""}

        def run(self, parts: Parts) -> float:
            return 0.0

    with pytest.warns(DeprecationWarning, match="leaves_aside of a job is now ignored_groups"):
        assert ignored_groups(Former()) == {"report": ""}
