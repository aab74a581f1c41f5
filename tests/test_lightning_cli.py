"""The callbacks by name on the command line of a LightningCLI."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lightning_sgdinf import RunLog, ScoreOnFitEnd, Scores, TrajectoryRecorder

cli = pytest.importorskip("lightning.pytorch.cli")
pytest.importorskip("jsonargparse")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=1",
    "--trainer.max_steps=4",
]


@pytest.fixture(autouse=True)
def _no_other_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


def run(*arguments: str, **options: Any) -> Any:
    """``python train.py ...`` with a script of three lines."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return cli.LightningCLI(
            BoringModel, BoringDataModule, args=[*arguments, *QUIET], seed_everything_default=0, **options
        )


@pytest.mark.parametrize("name", ["TrajectoryRecorder", "lightning_sgdinf.TrajectoryRecorder"])
def test_a_flag_records(name: str, tmp_path: Path) -> None:
    log = tmp_path / "run.tlog"
    chosen = [f"--trainer.callbacks+={name}", f"--trainer.callbacks.path={log}", "--trainer.callbacks.keep=every(2)"]
    logger = [f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.name=kept", "--trainer.logger.version=one"]
    run("fit", *chosen, "--trainer.logger=lightning.pytorch.loggers.CSVLogger", *logger)
    saved = yaml.safe_load((tmp_path / "kept" / "one" / "config.yaml").read_text())["trainer"]["callbacks"][0]
    assert saved["class_path"] == "lightning_sgdinf.TrajectoryRecorder"
    assert saved["init_args"]["keep"] == "every(2)"
    with RunLog.open(log) as opened:
        assert len(opened) == 4
        assert opened.header.keep == "every(2)"


def test_a_wrong_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(
            *("fit", "--trainer.callbacks+=TrajectoryRecorder", f"--trainer.callbacks.path={tmp_path / 'x.tlog'}"),
            *("--trainer.callbacks.when_full=explode", "--trainer.logger=false"),
        )
    assert "explode" in capsys.readouterr().err


def test_help_has_the_arguments_and_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.LightningCLI(BoringModel, BoringDataModule, args=["fit", "--trainer.callbacks.help=TrajectoryRecorder"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Directory to write the log to" in said
    assert "--trainer.callbacks.store_batches" in said


def test_a_configuration_file_records_and_scores(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n"
        "  callbacks:\n"
        "    - class_path: lightning_sgdinf.ScoreOnFitEnd\n"
        "      init_args:\n"
        f"        path: {tmp_path / 'run.tlog'}\n"
        "        shown: 3\n"
        "        runner:\n"
        "          class_path: lightning_sgdinf.InfluenceRunner\n"
        "          init_args: {certificate: 'off', progress: false, accelerator: cpu}\n"
        "        query:\n"
        "          class_path: lightning_sgdinf.query.ExampleLoss\n"
        "          init_args: {ids: [0, 1]}\n"
    )
    run("fit", f"--config={config}", "--trainer.logger=false", save_config_callback=None)
    assert Scores.load(tmp_path / "run.report" / "scores.h5").values.shape == (64, 2)
    assert (tmp_path / "run.report" / "report.html").exists()


METHODS = [
    *(f"estimators.{name}" for name in ("AccumulatedInfluence", "FinalParameters", "KohLiang", "LastEpochs")),
    *(f"estimators.{name}" for name in ("NoHessian", "SgdInfluence", "TracIn")),
    *(f"baselines.{name}" for name in ("AreaUnderMargin", "LossBaseline", "MarginBaseline", "RandomBaseline")),
    *("valuation.Banzhaf", "valuation.KnnShapley", "valuation.Shapley"),
]


def test_every_way_to_answer_can_be_named() -> None:
    parser = cli.LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ScoreOnFitEnd, "end")
    for name in METHODS:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            chosen = parser.parse_args(["--end.path=x.tlog", f"--end.estimator=lightning_sgdinf.{name}"])
        made = parser.instantiate_classes(chosen).end
        assert type(made._estimator).__name__ == name.partition(".")[2]


def test_the_recorders_types_are_known() -> None:
    parser = cli.LightningArgumentParser()
    skipped = parser.add_class_arguments(TrajectoryRecorder, "recorder", fail_untyped=True)
    assert "recorder.keep" in skipped
