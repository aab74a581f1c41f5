from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lightning_sgdinf.errors import ConfigurationError, MissingExtraError
from lightning_sgdinf.report import ReportData, log_report, write_page, write_report
from lightning_sgdinf.report.drawn import DrawnReport


def test_a_folder_gets_the_page_every_figure_and_every_table(full: ReportData, text: str, tmp_path: Path) -> None:
    page = write_report(full, tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    assert page.read_text(encoding="utf-8") == text
    pictures = {path.stem for path in (page.parent / "figures").iterdir()}
    assert {"score-distribution", "cleansing-curves", "most-harmful", "most-helpful"} <= pictures
    for path in (page.parent / "figures").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
    tables = {path.name for path in (page.parent / "tables").iterdir()}
    assert {"most-harmful.csv", "most-helpful.csv", "detection.csv", "curves.csv"} <= tables
    assert {path.name for path in page.parent.iterdir()} == {"report.html", "figures", "tables"}


def test_writing_again_replaces_the_page(bare: ReportData, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("an earlier page")
    write_page(bare, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == DrawnReport(bare).page


def test_a_page_that_fails_leaves_the_earlier_one(
    bare: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_page(bare, tmp_path / "page.html")
    earlier = path.read_text(encoding="utf-8")
    monkeypatch.setattr(DrawnReport, "page", None)
    with pytest.raises(AttributeError):
        write_page(bare, path)
    assert path.read_text(encoding="utf-8") == earlier
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_character_becomes_a_question_mark(
    bare: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrawnReport, "page", "label \ud800")
    assert write_page(bare, tmp_path / "page.html").read_text(encoding="utf-8") == "label ?"


def test_a_file_is_no_folder(bare: ReportData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="use write_page"):
        write_report(bare, tmp_path / "file")


def test_scores_write_their_own_report(bare: ReportData, tmp_path: Path) -> None:
    page = bare.scores.report(tmp_path / "page.html", title="Mine", shown=3)
    assert page == tmp_path / "page.html"
    assert "<h1>Mine</h1>" in page.read_text(encoding="utf-8")
    assert bare.scores.report(tmp_path / "folder") == tmp_path / "folder" / "report.html"
    assert (tmp_path / "folder" / "tables" / "most-harmful.csv").exists()


class Keeper:
    """A logger as others write them: it keeps numbers and knows nothing more."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        del step
        self.metrics |= metrics


def test_every_logger_gets_the_numbers(full: ReportData) -> None:
    one, two = Keeper(), Keeper()
    log_report(full, [one, two])
    assert one.metrics == two.metrics
    assert one.metrics["report/test_error/before"] == pytest.approx(0.2425)
    assert one.metrics["report/trust/last_steps_correlation"] == 0.5
    assert one.metrics["report/trust/last_steps"] == 5
    assert not any("whole_run" in name for name in one.metrics)
    assert one.metrics["report/examples"] == 40
    assert one.metrics["report/random_x/best_count"] == 0
    assert all(isinstance(value, float) for value in one.metrics.values())
    assert all(name.replace("/", "").replace("_", "").isalnum() for name in one.metrics)


def test_no_logger_is_no_error_and_no_logger_at_all_is(bare: ReportData) -> None:
    log_report(bare, None)
    with pytest.raises(ConfigurationError, match="got object"):
        log_report(bare, object())  # type: ignore[arg-type]


def test_lightnings_csv_logger_keeps_the_numbers_on_disk(full: ReportData, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    log_report(full, logger)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["report/test_error/after"]) == pytest.approx(0.1675)


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.figure", "scipy.stats"])
def test_without_an_extra_the_report_says_what_to_install(
    bare: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("lightning_sgdinf.report", "lightning_sgdinf.evaluation"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "lightning-sgdinf\[report\]"$'):
        bare.scores.report(tmp_path / "page.html")
