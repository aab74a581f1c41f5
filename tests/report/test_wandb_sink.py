from __future__ import annotations

import hashlib
import html
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from lightning_sgdinf import RunLog, Scores
from lightning_sgdinf.errors import MissingExtraError
from lightning_sgdinf.report import ReportData, finish_run, log_report, wandb_sink
from lightning_sgdinf.report.wandb_sink import is_wandb
from tests.report import draw_dashboard, wandb_records
from tests.report.conftest import make_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # wandb's own temporary folders
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@dataclass(frozen=True)
class Logged:
    """A finished offline run, moved away from where it was written."""

    folder: Path
    full: ReportData
    log: Path

    @property
    def file(self) -> Path:
        (file,) = self.folder.glob("*.wandb")
        return file

    def artifact(self, kind: str) -> Any:
        artifacts = [r.artifact for r in wandb_records.records(self.file) if r.WhichOneof("record_type") == "artifact"]
        requests = [
            r.request.log_artifact.artifact
            for r in wandb_records.records(self.file)
            if r.WhichOneof("record_type") == "request"
        ]
        (artifact,) = [a for a in (*artifacts, *requests) if a.type == kind]
        return artifact


@pytest.fixture(scope="module")
def logged(full: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    worst = full.scores.order()[0].item()
    full = replace(full, examples={**full.examples, worst: replace(full.examples[worst], prediction="a dog")})
    place = tmp_path_factory.mktemp("wandb")
    log = Path(__file__).parents[1] / "log" / "golden" / "v1" / "delta"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_DATA_DIR", raising=False)
        for name, value in {"MODE": "offline", "SILENT": "true", "RUN_GROUP": "sweep-7", "JOB_TYPE": "tracin"}.items():
            patch.setenv(f"WANDB_{name}", value)
        for name in ("CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{name}", str(place / name))
        patch.setenv("XDG_DATA_HOME", str(place / "home"))
        wandb_records.read_environment_anew()
        logger = WandbLogger(project="test", save_dir=place, offline=True)
        try:
            logger.log_hyperparams({"estimator": "tracin", "seed": 3})
            log_report(full, logger, log=log)
            folder = Path(logger.experiment.sync_dir)
        finally:
            finish_run(failed=False)
    moved = place / "elsewhere"
    folder.rename(moved)
    assert not list((place / "home").rglob("*.png")), "pictures were left in the user's home"
    return Logged(moved, full, log)


def test_the_ranking_has_pictures_labels_predictions_scores_ranks_and_contributions(logged: Logged) -> None:
    (file,) = logged.folder.glob("files/media/table/report/ranking*.table.json")
    table = json.loads(file.read_text())
    columns, rows = table["columns"], table["data"]
    assert columns[0] == "image"
    assert columns[-1] == "per epoch (orange, down: it harmed)"
    assert {"rank", "example id", "label", "true label", "prediction", "known corrupt"} <= set(columns)
    scores = logged.full.scores
    ids = [row[columns.index("example id")] for row in rows]
    assert ids == [*scores.most_harmful(6).example_ids, *reversed(scores.most_helpful(6).example_ids)]
    ranks = [row[columns.index("rank")] for row in rows]
    assert ranks == sorted(ranks)
    assert rows[0][columns.index("prediction")] == "a dog"
    column = next(i for i, name in enumerate(columns) if name.startswith("change of validation loss"))
    assert [row[column] for row in rows] == [pytest.approx(scores.values[i, 0].item()) for i in ids]


def test_pictures_of_tables_lie_in_the_runs_folder_and_show_what_they_should(logged: Logged) -> None:
    staged = [Image.open(path) for path in (logged.folder / "data").rglob("*") if path.is_file() and _is_png(path)]
    lines = [image for image in staged if image.size == (120, 28)]
    assert len(lines) == 12
    pictured = [i for i in logged.full.examples if logged.full.examples[i].image is not None]
    shown = {*logged.full.scores.most_harmful(6).example_ids, *logged.full.scores.most_helpful(6).example_ids}
    assert len(staged) - len(lines) == len(shown & set(pictured)) > 0


def test_the_runs_folder_holds_page_pictures_and_tables(logged: Logged) -> None:
    media = logged.folder / "files" / "media"
    (page,) = media.rglob("page*.html")
    assert f"<title>{html.escape(logged.full.title)}" in page.read_text(encoding="utf-8")
    pictured = [i for i in logged.full.scores.most_harmful(6).example_ids if i in logged.full.examples]
    pictured = [i for i in pictured if logged.full.examples[i].image is not None]
    assert len(list(media.rglob("most-harmful*.png"))) == len(pictured) > 0
    assert len(list(media.rglob("report/figures*.png"))) == 7, "every figure of the page, in one panel"
    (table,) = media.rglob("detection*.table.json")
    assert len(json.loads(table.read_text())["data"]) == 2


def test_curves_of_all_methods_are_one_chart_and_a_metric_each(logged: Logged) -> None:
    rows = wandb_records.history(logged.file)
    points = [row for row in rows if "report/left_out" in row]
    assert [row["report/left_out"] for row in points] == [0, 2, 4]
    first, second = logged.full.curves
    assert [row["report/curve/random $x"] for row in points] == pytest.approx(second.mean.tolist())
    assert [row["report/curve/own"] for row in points] == pytest.approx(first.mean.tolist())
    curves = {key for row in rows for key in row if key.startswith("report/curve/")}
    assert curves == {"report/curve/own", "report/curve/random $x"}, "a curve is logged once"
    metrics = [r.metric for r in wandb_records.records(logged.file) if r.WhichOneof("record_type") == "metric"]
    assert {m.name for m in metrics if m.step_metric == "report/left_out"} == curves, "and over what was left out"
    summary = wandb_records.summary(logged.file)
    assert summary["report/curve/own"] == {"min": pytest.approx(first.mean.min())}
    assert "report/left_out" not in summary, "where the grid ends says nothing"


def test_numbers_are_keys_of_the_summary_and_no_charts_of_one_point(logged: Logged) -> None:
    summary, rows = wandb_records.summary(logged.file), wandb_records.history(logged.file)
    known = {key: value for key, value in summary.items() if key.startswith("report/") and isinstance(value, float)}
    assert summary["report/examples"] == 40
    assert summary["report/test_error/before"] == pytest.approx(0.2425)
    for name in ("trust/last_steps_correlation", "trust/last_steps", "trust/last_steps_low", "trust/left_out"):
        assert f"report/{name}" in summary
    assert summary["report/trust/of"] == "the last 5 of 7 steps"
    assert summary["report/sure"].startswith("Known for the end of the training only.")
    assert summary["report/warning"] == "\n".join(logged.full.all_warnings)
    assert summary["report/result"].startswith("Leaving out the 3 most harmful of 40 training examples lowered")
    assert {key for row in rows for key in row if key in known} == set()


def test_all_examples_are_a_table_that_can_be_asked(logged: Logged) -> None:
    (file,) = logged.folder.glob("files/media/table/report/all-examples*.table.json")
    table = json.loads(file.read_text())
    columns, rows = table["columns"], [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    data, scores = logged.full, logged.full.scores
    assert [row["example id"] for row in rows] == scores.order().tolist()
    assert [row["rank"] for row in rows] == sorted(scores.ranks().tolist())
    for name, values in (
        ("change of validation loss if left out", scores.values[:, 0]),
        ("change of margin if left out", scores.values[:, 1]),
        ("change of random if left out (random)", data.compared["random"].values[:, 0]),
    ):
        assert [row[name] for row in rows] == pytest.approx(values[scores.order()].tolist())
    assert {row["example id"] for row in rows if row["known corrupt"] == "yes"} == data.known_corrupt
    assert len(columns) == len(set(columns))


def test_a_workspace_can_be_drawn_from_the_runs_folder_alone(logged: Logged) -> None:
    page = draw_dashboard.workspace(logged.folder)
    assert html.escape("Known for the end of the training only.") in page
    pictures = [len(list(logged.folder.rglob(f"report/{name}_*.png"))) for name in ("most-harmful", "most-helpful")]
    assert page.count("<img ") == sum(pictures) + 6 + 1, "six figures, and the curves"
    assert "<b>change of validation loss if left out</b>" in page


def test_the_settings_of_the_report_are_in_the_configuration(logged: Logged) -> None:
    config = wandb_records.config(logged.file)
    about = config["report"]
    assert (about["query"], about["better"], about["examples"], about["certificate"]) == (
        *("validation loss", "lower", 40, "fast"),
    )


def test_the_histogram_counts_every_example(logged: Logged) -> None:
    (counts,) = [
        row["report/scores/values"] for row in wandb_records.history(logged.file) if "report/scores/values" in row
    ]
    assert sum(counts) == len(logged.full.scores)


def test_scores_are_an_artifact_with_their_digest(logged: Logged) -> None:
    artifact = logged.artifact("scores")
    about = json.loads(artifact.metadata)
    (entry,) = artifact.manifest.contents
    (file,) = [p for p in (logged.folder / "data").rglob("*") if p.is_file() and _sha256(p) == about["sha256"]]
    assert entry.path == "scores.h5"
    assert torch.equal(Scores.load(file).values, logged.full.scores.values)
    assert about["provenance"]["log digest"] == "9f3a"


def test_the_record_is_an_artifact_with_its_digest(logged: Logged) -> None:
    artifact = logged.artifact("training-record")
    about = json.loads(artifact.metadata)
    with RunLog.open(logged.log) as log:
        assert about["digest"] == log.digest
        assert about["steps"] == len(log)
    assert {entry.path for entry in artifact.manifest.contents} == {
        f"{logged.log.name}/{file.name}" for file in logged.log.glob("*.h5")
    }


def test_runs_can_be_grouped_and_compared(logged: Logged) -> None:
    (run,) = [r.run for r in wandb_records.records(logged.file) if r.WhichOneof("record_type") == "run"]
    assert (run.run_group, run.job_type) == ("sweep-7", "tracin")
    config = wandb_records.config(logged.file)
    assert (config["estimator"], config["seed"]) == ("tracin", 3)
    summary = wandb_records.summary(logged.file)
    own, named = (summary[key] for key in ("report/own/auroc", "report/random_x/best_count"))
    assert own == logged.full.detections[next(iter(logged.full.detections))].auroc
    assert named == 0


def test_a_large_record_is_named_and_not_uploaded(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb_sink, "LOG_LIMIT_BYTES", 10)
    artifact = wandb_sink._record(wandb, SimpleNamespace(id="x"), logged.log)
    refs = {entry.ref for entry in artifact.manifest.entries.values()}
    assert refs == {f"{logged.log.resolve().as_uri()}/{file.name}" for file in logged.log.iterdir()}
    assert artifact.metadata["bytes"] > 10


def test_a_later_logger_of_the_process_gets_a_run_of_its_own(logged: Logged) -> None:
    del logged
    wandb = sys.modules["wandb"]
    assert wandb.run is None
    finish_run(failed=True)  # nothing to end is no error


def test_it_is_told_by_what_only_it_offers(tmp_path: Path) -> None:
    assert not is_wandb(CSVLogger(tmp_path))
    assert all(hasattr(WandbLogger, name) for name in ("log_table", "log_image", "experiment"))


def test_without_wandb_it_says_what_to_install(bare: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    imposter = SimpleNamespace(log_metrics=lambda metrics: None, log_table=None, log_image=None, experiment=None)
    with pytest.raises(MissingExtraError, match=r'pip install "lightning-sgdinf\[wandb\]"$'):
        log_report(bare, imposter)


def _is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_texts_with_half_a_character_are_logged_with_a_question_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb_records.read_environment_anew()
    half = "\ud800<b>"
    scores = replace(make_scores(half), queries=(f"loss {half}", half))
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_report(ReportData(title=half, scores=scores, warnings=(half,)), logger, files=False)
    folder = Path(logger.experiment.dir).parent
    wandb.finish()
    (file,) = folder.glob("*.wandb")
    assert "?<b>" in wandb_records.summary(file)["report/warning"]
