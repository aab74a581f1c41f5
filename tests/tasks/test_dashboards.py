"""A sweep's jobs in dashboards: a run each, grouped and told apart by what they were."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from lightning_sgdinf.tasks.main import main
from tests.report import wandb_records

TINY = [
    *("dataset.train_size=32", "dataset.val_size=40", "dataset.test_size=40", "dataset.batch_size=16", "model=logreg"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "cleansing.grid=[2]", "report.shown=2", "report=short"),
    *("runner.certificate=off", "~estimator@compare.random"),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # wandb's own temporary folders
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_job_of_a_sweep_is_a_run_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    wandb_records.read_environment_anew()
    chosen = ["-m", "estimator=last_epochs", "logger=wandb", "logger.offline=true", "hydra.sweep.dir=swept"]
    monkeypatch.setattr(sys, "argv", ["sgdinf", *chosen, *TINY])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        main()
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level
    (file,) = (tmp_path / "swept").rglob("*.wandb")
    (run,) = [r.run for r in wandb_records.records(file) if r.WhichOneof("record_type") == "run"]
    assert (run.run_group, run.job_type, run.project) == ("swept", "last_epochs", "sgdinf")
    config = wandb_records.config(file)
    assert (config["estimator"], config["dataset"], config["model"], config["seed"]) == (
        *("last_epochs", "digits", "logreg", 0),
    )
    (table,) = file.parent.rglob("ranking*.table.json")
    assert '"prediction"' in table.read_text()
    assert sys.modules["wandb"].run is None  # the next job of the sweep begins one of its own
