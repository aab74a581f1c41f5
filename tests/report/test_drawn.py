from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure

from lightning_sgdinf.evaluation.removals import Removal
from lightning_sgdinf.report import ReportData, log_report, publish_report, wandb_sink
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.report.figures import all_figures, contact_sheets
from lightning_sgdinf.report.merged import Merged, Panel
from lightning_sgdinf.report.sinks import log_merged
from lightning_sgdinf.report.style import to_png, to_svg
from lightning_sgdinf.report.tables import Table

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own


class WandbStandIn:
    """Offers what `WandbLogger` is told by, and counts the pictures and pages it is handed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.experiment, self.summary = self, dict[str, str]()
        self.config = SimpleNamespace(update=lambda *_, **__: None)
        self.pictures: list[str] = []
        self.pages: list[str] = []
        modules = {
            "Image": lambda *_, **__: None,
            "Table": lambda **_: None,
            "Histogram": lambda **_: None,
            "Html": lambda page, **_: self.pages.append(page),
            "plot": SimpleNamespace(line_series=lambda **_: None),
        }
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**modules))
        monkeypatch.setattr(wandb_sink, "_log_artifacts", lambda *_: None)

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_table(self, *_: Any, **__: Any) -> None: ...

    def log(self, *_: Any) -> None: ...

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log_image(self, name: str, images: list[Any], **_: Any) -> None:
        self.pictures += [name] * len(images)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many figures were begun, and how many were saved as what."""
    counted: Counter[str] = Counter()
    begin, save = Figure.__init__, Figure.savefig

    def counting_begin(self: Figure, *args: Any, **options: Any) -> None:
        counted["begun"] += 1
        begin(self, *args, **options)

    def counting_save(self: Figure, *args: Any, **options: Any) -> None:
        counted[options["format"]] += 1
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "__init__", counting_begin)
    monkeypatch.setattr(Figure, "savefig", counting_save)
    return counted


def test_page_folder_and_all_loggers_get_the_same_drawing(
    full: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Counter[str]
) -> None:
    wandb, board = WandbStandIn(monkeypatch), TensorBoardLogger(tmp_path / "board", name="", version="")
    page = publish_report(full, tmp_path / "report", [wandb, board])
    figures = len(list((tmp_path / "report" / "figures").glob("*.png")))
    sheets = len({"most-harmful", "most-helpful"})
    assert drawn == {"begun": figures, "svg": figures - sheets, "png": figures}
    assert wandb.pictures.count("report/figures") == figures - sheets == 7  # sheets go as pictures of each example
    assert wandb.pages == [page.read_text(encoding="utf-8")]


def test_loggers_without_a_folder_of_the_callers_share_one_too(
    full: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Counter[str]
) -> None:
    log_report(full, [WandbStandIn(monkeypatch), CSVLogger(tmp_path, name="", version="")])
    assert drawn == {"begun": 9, "svg": 7, "png": 9}


def test_merged_runs_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Counter[str]) -> None:
    removal = Removal(count=3, before=np.array([0.2, 0.3]), after=np.array([0.1, 0.4]))
    panel = Panel(title="one cell", base=(0.2, 0.3), curves={"random": [removal]})
    merged = Merged(title="Runs", about="Two.", panels=(panel,), tables=(Table("main", "", ("a",), ((1,),)),))
    wandb, board = WandbStandIn(monkeypatch), TensorBoardLogger(tmp_path, name="", version="")
    for logger in (wandb, board):
        log_merged(merged, logger, numbers={}, curves={"random": {3: 0.25}})
    assert drawn == {"begun": 1, "svg": 1, "png": 1}
    assert wandb.pages == [(tmp_path / "report" / "page.html").read_text(encoding="utf-8")]


def test_bytes_do_not_depend_on_what_is_asked_for_first(full: ReportData) -> None:
    one, other = DrawnReport(full), DrawnReport(full)
    pictures, charts = one.pictures, other.charts
    assert charts == one.charts
    assert pictures == other.pictures
    alone = {name: to_svg(figure) for name, figure in all_figures(full).items()}
    assert charts == alone
    assert {name: to_png(sheet) for name, sheet in contact_sheets(full).items()}.items() <= pictures.items()
