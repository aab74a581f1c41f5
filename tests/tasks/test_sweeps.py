"""Sweeps: stopped and gone on with, side by side, refused."""

from __future__ import annotations

import csv
import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies import cache
from lightning_sgdinf.studies.cleansing import CleansingJob
from lightning_sgdinf.studies.lds import LdsJob
from lightning_sgdinf.studies.pipeline import run as pipeline
from lightning_sgdinf.studies.results import RunResults
from lightning_sgdinf.tasks.main import main
from lightning_sgdinf.tasks.refusals import refuse_ignored_groups, refuse_processes_in_a_sweep

SIZES = [
    "dataset.train_size=48",
    "dataset.val_size=60",
    "dataset.test_size=60",
    "dataset.batch_size=16",
    "model=logreg",
]
TINY = [*SIZES, "trainer.max_epochs=2", "trainer.accelerator=cpu", "cleansing.grid=[1,2]", "report=short"]
FAST = ["~estimator@compare.random", "runner.certificate=off", "hydra.sweep.dir=swept"]
EXPERIMENT = [
    *("experiment=cleansing", "dataset=digits", *SIZES, "trainer.max_epochs=2", "trainer.accelerator=cpu"),
    *("job.grid=[2,5]", "job.methods=[last_epochs,random]", "output_dir=found", "hydra.sweep.dir=swept"),
]


def sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sgdinf", "-m", *arguments])
    main()


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as content:
        rows = list(csv.DictReader(content))
    assert all(None not in row and None not in row.values() for row in rows)  # as many cells as columns
    return rows


def test_a_sweep_that_was_stopped_goes_on(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, seeds = pipeline.rank, []

    def stopping(study: Any, trained: Any) -> Any:
        seeds.append(study.seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return real(study, trained)

    monkeypatch.setattr(pipeline, "rank", stopping)
    # Nobody looks at the single pages.
    monkeypatch.setattr(pipeline, "publish_report", lambda data, folder, *rest, **more: folder)
    arguments = [*TINY, *FAST, "estimator=last_epochs", "seed=3,4"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sweep(monkeypatch, *arguments)
    first = (in_folder / "swept" / "0" / "summary.json").read_bytes()
    assert json.loads((in_folder / "swept" / "1" / "job.json").read_text())["result"] is None
    sweep(monkeypatch, *arguments)
    assert seeds == [3, 4, 4]  # the first is not done again, the one that was stopped is
    assert (in_folder / "swept" / "0" / "summary.json").read_bytes() == first
    assert [row["seed"] for row in table(in_folder / "swept" / "summary.csv")] == ["3", "4"]
    merged = in_folder / "swept" / "merged"
    assert "Merged: " in capsys.readouterr().out
    (choice,) = table(merged / "choices.csv")
    assert (choice["runs"], choice["chosen by"], choice["method"]) == ("2", "validated", "last_epochs")
    assert (merged / "page.html").is_file()
    record = sorted((in_folder / "swept" / "0" / "run.tlog").iterdir())
    for _ in range(2):  # another job in the same place is refused, however often it is tried: nothing is overwritten
        with pytest.raises(SystemExit):
            sweep(monkeypatch, *TINY, *FAST, "estimator=last_epochs", "seed=5")
        assert "a sweep with other settings (now seed: 5" in capsys.readouterr().err
        assert sorted((in_folder / "swept" / "0" / "run.tlog").iterdir()) == record
        assert (in_folder / "swept" / "0" / "summary.json").read_bytes() == first
    sweep(monkeypatch, *arguments)
    assert seeds == [3, 4, 4]  # the first sweep is still known to be done


def test_a_job_that_fails_does_not_stop_the_others(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sweep(monkeypatch, *EXPERIMENT, "job.methods=[random]", "job.grid=[2]", "dataset.label_noise=2.0,0.1")
    said = capsys.readouterr().err
    assert "ConfigurationError: dataset: fraction" in said
    assert "Traceback" not in said
    assert (in_folder / "swept" / "1" / "summary.json").is_file()
    assert not (in_folder / "swept" / "0" / "summary.json").exists()


def test_jobs_side_by_side(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    sweep(monkeypatch, *EXPERIMENT, "seed=0,1", *launcher)
    found = [RunResults.load(in_folder / "found" / "digits_logreg" / f"seed_00{s}" / "results.json") for s in (0, 1)]
    assert [run.seed for run in found] == [0, 1]
    rows = table(in_folder / "found" / "merged" / "table.csv")
    assert {(row["method"], row["left out"], row["runs"]) for row in rows} == {
        ("nothing left out", "0", "2"),
        *((method, count, "2") for method in ("last_epochs", "random") for count in ("2", "5")),
    }
    changed = {file: file.stat().st_mtime_ns for file in (in_folder / "found").rglob("retrained/*/*.json")}
    sweep(monkeypatch, *EXPERIMENT, "seed=0,1")  # nothing is left to do
    assert {file: file.stat().st_mtime_ns for file in changed} == changed
    assert len(changed) == 10


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_processes_are_refused_before_any_job_is_started(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], launcher: str
) -> None:
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    with pytest.raises(SystemExit):
        sweep(
            monkeypatch, *TINY, "trainer.devices=2", "seed=0,1", f"hydra/launcher={launcher}", "hydra.sweep.dir=swept"
        )
    assert "would start the sweep again. Use trainer.devices=1" in capsys.readouterr().err
    assert not list((in_folder / "swept").rglob("job.json"))


@pytest.mark.parametrize(
    ("trainer", "refused"),
    [
        ({}, False),
        ({"strategy": "auto", "devices": 1}, False),
        ({"strategy": "auto", "devices": 2}, True),
        ({"strategy": "auto", "devices": 1, "num_nodes": 2}, True),
        ({"strategy": "ddp_find_unused_parameters_true", "devices": 1}, True),
        ({"strategy": "ddp_spawn", "devices": 2}, False),
        ({"strategy": "ddp_notebook_find_unused_parameters_true", "devices": 2}, False),
        ({"strategy": "deepspeed_stage_2", "devices": 2}, True),
    ],
)
def test_which_processes_are_refused(trainer: dict[str, Any], refused: bool) -> None:
    config = OmegaConf.create({"trainer": trainer})
    if not refused:
        refuse_processes_in_a_sweep(config)
        return
    with pytest.raises(ConfigurationError, match="ddp_spawn"):
        refuse_processes_in_a_sweep(config)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("job.methods=[sgd_influense]", "job: methods: there is no 'sgd_influense'; did you mean 'sgd_influence'?"),
        ("job.grid=[2,480]", "counts below the 48 training examples, got 480"),
        ("+job.gird=[1]", "job.gird: "),
        ("job.strategies.validated._target_=lightning_sgdinf.cleansing.Validatet", "cannot import"),
        ("dataset=adult_lie", "dataset: expected images, got Adult"),
    ],
)
def test_mistakes_end_with_one_line(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    sizes = [] if override.startswith("dataset=") else SIZES[:-1]
    dataset = [] if override.startswith("dataset=") else ["dataset=digits"]
    monkeypatch.setattr(
        sys, "argv", ["sgdinf", "experiment=cleansing", "hydra.run.dir=out", *dataset, *sizes, override]
    )
    with pytest.raises(SystemExit):
        main()
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["estimator=no_hessian"], "does not read estimator: job.methods says which of job.estimators rank"),
        (["retrain=all"], "does not read retrain: job.modes"),
        (["cleansing.grid=[3]"], "does not read cleansing: job.strategies"),
        (["+estimator@compare.tracin=tracin"], "does not read compare: job.methods"),
        (["report=short"], "report=short: this experiment does not read report: sgdinf-merge makes the page"),
        (["choose_by=loss"], "choose_by=loss: this experiment does not read choose_by: it has job.choose_by"),
    ],
)
def test_what_would_change_nothing_is_refused(
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    single = [argument for argument in EXPERIMENT if not argument.startswith("hydra.sweep")]
    monkeypatch.setattr(sys, "argv", ["sgdinf", *single, *arguments])
    with pytest.raises(SystemExit):
        main()
    assert says in capsys.readouterr().err
    assert not (in_folder / "found").exists()


@pytest.mark.parametrize(
    "argument",
    ["estimator@job.estimators.mine=loss", "++job.choose_by=loss", "+compared=1", "optimizer=sgd", "logger=csv"],
)
def test_what_changes_something_is_not_refused(argument: str) -> None:
    refuse_ignored_groups([argument], CleansingJob.ignored_groups)


def test_experiments_without_dashboards_refuse_loggers() -> None:
    with pytest.raises(ConfigurationError, match="logger=wandb: this experiment does not read logger"):
        refuse_ignored_groups(["logger=wandb"], LdsJob.ignored_groups)


def test_a_row_names_what_was_looked_at(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(monkeypatch, *EXPERIMENT, "seed=0")
    (row,) = table(in_folder / "swept" / "summary.csv")
    assert {"dataset", "model", "optimizer", "result"} <= set(row)
    assert not {"estimator", "retrain", "cleansing", "recorder", "report", "logger"} & set(row)


def test_a_place_that_takes_no_file_is_named(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    single = [argument for argument in EXPERIMENT if not argument.startswith("hydra.sweep")]
    monkeypatch.setattr(sys, "argv", ["sgdinf", *single])
    with monkeypatch.context() as patch:
        patch.setattr(cache, "replace_bytes", full)
        with pytest.raises(SystemExit):
            main()
    said = capsys.readouterr().err
    assert "settings.json'; free some space and start it again: what is whole stays" in said
    main()
    assert RunResults.load(in_folder / "found" / "digits_logreg" / "seed_000" / "results.json").points


def test_a_mistyped_experiment_is_no_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sgdinf", "experiment=cleansin"])
    with pytest.raises(SystemExit):
        main()
