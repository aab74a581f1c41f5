"""A sweep's jobs in dashboards: a run each, grouped and told apart by what they were."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightning_sgdinf.studies.results import RunResults
from lightning_sgdinf.tasks.main import main
from tests.report import wandb_records

TINY = [
    *("dataset.train_size=32", "dataset.val_size=40", "dataset.test_size=40", "dataset.batch_size=16", "model=logreg"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "cleansing.grid=[2]", "report.shown=2", "report=short"),
    *("runner.certificate=off", "~estimator@compare.random"),
]


EXPERIMENT = [
    *("experiment=cleansing", "dataset=digits", "dataset.label_noise=0.2", *TINY[:5], *TINY[5:7], "output_dir=found"),
    *("job.grid=[2,5]", "job.methods=[last_epochs,random]", "job.shown=2"),
]
ignoring_wandbs_own = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture
def wandb_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wandb keeps outside its runs, too, is below this folder."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    wandb_records.read_environment_anew()


@contextmanager
def handlers_as_before() -> Iterator[None]:
    """Hydra gives the root logger handlers for a job."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["sgdinf", *arguments])
    with handlers_as_before():
        main()


@ignoring_wandbs_own
@pytest.mark.usefixtures("wandb_here")
def test_a_job_of_a_sweep_is_a_run_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["-m", "estimator=last_epochs", "logger=wandb", "logger.offline=true", "hydra.sweep.dir=swept"]
    run(monkeypatch, tmp_path, *chosen, *TINY)
    (file,) = (tmp_path / "swept" / "0").rglob("*.wandb")
    (about,) = [r.run for r in wandb_records.records(file) if r.WhichOneof("record_type") == "run"]
    assert (about.run_group, about.job_type, about.project) == ("swept", "last_epochs", "sgdinf")
    assert (about.display_name, list(about.tags)) == (
        *("digits-logreg-last_epochs-seed0", ["digits", "logreg", "last_epochs"]),
    )
    records = list(wandb_records.records(file))
    kinds = [r.WhichOneof("record_type") for r in records]
    told = next(n for n, r in enumerate(records) if r.WhichOneof("record_type") == "config" and "batch_size" in str(r))
    assert told < kinds.index("history"), "the settings are there before anything is trained"
    config = wandb_records.config(file)
    assert (config["estimator"], config["dataset"], config["model"], config["seed"]) == (
        *("last_epochs", "digits", "logreg", 0),
    )
    (table,) = file.parent.rglob("ranking*.table.json")
    assert '"prediction"' in table.read_text()
    whole = config["config"]
    assert (whole["dataset"]["batch_size"], whole["trainer"]["max_epochs"], whole["cleansing"]["grid"]) == (16, 1, [2])
    assert whole["data_dir"], "interpolations are resolved"

    (file,) = (tmp_path / "swept" / "merged").rglob("*.wandb")
    (about,) = [r.run for r in wandb_records.records(file) if r.WhichOneof("record_type") == "run"]
    assert (about.run_group, about.job_type, about.display_name) == ("swept", "comparison", "comparison")
    (table,) = (json.loads(f.read_text()) for f in file.parent.rglob("every-job*.table.json"))
    assert table["columns"][:2] == ["configuration", "seed"]
    row = json.loads((tmp_path / "swept" / "0" / "summary.json").read_text())
    assert table["data"][0][table["columns"].index("test error after")] == row["test_error_after"]
    artifacts = [r.request.log_artifact.artifact for r in wandb_records.records(file) if r.HasField("request")]
    (comparison,) = [a for a in artifacts if a.type == "comparison"] or [
        *(r.artifact for r in wandb_records.records(file) if r.HasField("artifact") and r.artifact.type == "comparison")
    ]
    assert {entry.path for entry in comparison.manifest.contents} >= {"every-job.table.json", "jobs.table.json"}
    assert sys.modules["wandb"].run is None  # the next job of the sweep begins one of its own


def curves_of(found: RunResults) -> dict[str, dict[int, float]]:
    """By hand, from what is on disk."""
    (base,) = [p.measured.test_error for p in found.points if p.count == 0]
    curves: dict[str, dict[int, float]] = {"last/last_epochs": {0: base}, "last/random": {0: base}}
    for point in found.points:
        if point.count:
            curves[f"last/{point.method}"][point.count] = point.measured.test_error
    assert all(sorted(curve) == [0, 2, 5] for curve in curves.values())
    return curves


@ignoring_wandbs_own
@pytest.mark.usefixtures("wandb_here")
def test_a_seed_of_the_experiment_is_a_run_with_rankings_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["logger=wandb", "logger.offline=true", "seed=3", "hydra.sweep.dir=swept"]
    run(monkeypatch, tmp_path, "-m", *EXPERIMENT, *chosen)
    place = tmp_path / "found" / "digits_logreg" / "seed_003"
    found = RunResults.load(place / "results.json")
    (file,) = place.rglob("*.wandb")
    (about,) = [r.run for r in wandb_records.records(file) if r.WhichOneof("record_type") == "run"]
    assert (about.run_group, about.job_type) == ("swept", "cleansing")
    assert (about.display_name, list(about.tags)) == (
        "digits_logreg-cleansing-seed3",
        ["digits", "logreg", "cleansing"],
    )
    config = wandb_records.config(file)
    assert (config["seed"], config["cell"], config["optimizer"]) == (3, "digits_logreg", "sgd")
    assert "estimator" not in config  # several rank

    rows = wandb_records.history(file)
    logged: dict[str, dict[int, float]] = {name: {} for name in curves_of(found)}
    for row in rows:
        for name in logged:
            if f"report/curve/{name}" in row:
                logged[name][row["report/left_out"]] = row[f"report/curve/{name}"]
    assert logged == curves_of(found)
    numbers = wandb_records.summary(file)
    assert numbers["report/last_epochs/average_precision"] == found.methods["last_epochs"].average_precision
    chosen_by = {(choice.method, choice.strategy): choice for choice in found.choices}
    assert numbers["report/last/random/stable/left_out"] == chosen_by["random", "stable"].count
    assert numbers["report/last/last_epochs/validated/test_error"] == chosen_by["last_epochs", "validated"].after

    (table,) = (json.loads(f.read_text()) for f in file.parent.rglob("ranking*.table.json"))
    assert table["columns"] == ["image", "method", "rank", "example id", "label", "true label"]
    by_method = {m: [row[3] for row in table["data"] if row[1] == m] for m in found.harmful}
    assert by_method == {method: list(ids) for method, ids in found.harmful.items()}
    assert [len(list(file.parent.rglob(f"{method}-examples*.png"))) for method in found.harmful] == [2, 2]
    assert {f.name.split("_")[0] for f in file.parent.rglob("*.table.json")} >= {"removals", "choices", "methods"}


@ignoring_wandbs_own
@pytest.mark.usefixtures("wandb_here")
def test_a_seed_of_unlearning_is_a_run_with_its_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["experiment=unlearning", *TINY[:4], "trainer.max_epochs=2", "job.only=[replay_1,replay_2]", "seed=2"]
    run(monkeypatch, tmp_path, *chosen, "output_dir=found", "logger=wandb", "logger.offline=true")
    (seed,) = (tmp_path / "found").glob("*/seed_2")
    (file,) = seed.rglob("*.wandb")
    (about,) = [r.run for r in wandb_records.records(file) if r.WhichOneof("record_type") == "run"]
    assert about.job_type == "unlearning"
    config = wandb_records.config(file)
    assert (config["seed"], config["forget"]) == (2, "class_8")
    numbers = wandb_records.summary(file)
    row = json.loads((seed / "replay_1.json").read_text())
    assert numbers["report/replay_1/rest_divergence"] == row["measures"]["rest_divergence"]
    assert numbers["report/replay_1/epochs"] == row["epochs"]
    media = file.parent / "files" / "media"
    assert list(media.rglob("page*.html"))
    assert list(media.rglob("figure*.png"))
    assert list(media.rglob("the set-examples*.png"))


def test_seeds_keep_files_of_their_own_in_other_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        run(monkeypatch, tmp_path, *EXPERIMENT, "logger=csv", f"seed={seed}")
        place = tmp_path / "found" / "digits_logreg" / f"seed_00{seed}"
        found = RunResults.load(place / "results.json")
        with (place / "metrics" / "metrics.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert float(row["report/last/nothing_left_out"]) == curves_of(found)["last/random"][0]
        assert {f.name for f in (place / "metrics" / "report").iterdir()} >= {"page.html", "figure.png", "table.csv"}
    run(monkeypatch, tmp_path, *EXPERIMENT, "logger=csv", "logger.save_dir=elsewhere")
    assert (tmp_path / "elsewhere" / "metrics" / "metrics.csv").is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_curves_of_the_experiment_in_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(monkeypatch, tmp_path, *EXPERIMENT, "logger=tensorboard")
    place = tmp_path / "found" / "digits_logreg" / "seed_000"
    read = board.EventAccumulator(str(place / "metrics"), size_guidance={"tensors": 0, "images": 0}).Reload()
    for name, curve in curves_of(RunResults.load(place / "results.json")).items():
        points = {p.step: p.value for p in read.Scalars(f"report/curve/{name}")}
        assert points == pytest.approx(curve)
    assert "report/figure" in read.Tags()["images"]
    assert "report/removals/text_summary" in read.Tags()["tensors"]


def test_no_logger_if_none_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tmp_path, *TINY, "estimator=last_epochs", "~logger", "hydra.run.dir=out")
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    assert not list(tmp_path.rglob("metrics.csv"))
