from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_sgdinf.errors import MissingExtraError
from lightning_sgdinf.report import ReportData, log_report
from lightning_sgdinf.report.wandb_sink import is_wandb


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # wandb's own temporary folders
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_offline_the_runs_folder_holds_page_pictures_and_tables(
    full: ReportData, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MODE": "offline",
        "DIR": str(tmp_path),
        "DATA_DIR": str(tmp_path / "data"),
        "SILENT": "true",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    try:
        log_report(full, logger)
        folder = Path(logger.experiment.dir) / "media"
    finally:
        logger.experiment.finish()
    (page,) = folder.rglob("page*.html")
    assert page.read_text(encoding="utf-8") == text
    pictured = [i for i in full.scores.most_harmful(6).example_ids if i in full.examples]
    pictured = [i for i in pictured if full.examples[i].image is not None]
    assert len(list(folder.rglob("most-harmful-examples*.png"))) == len(pictured) > 0
    assert len(list(folder.rglob("*-figure*.png"))) == 9
    (table,) = folder.rglob("detection*.table.json")
    assert len(json.loads(table.read_text())["data"]) == 2


def test_it_is_told_by_what_only_it_offers(tmp_path: Path) -> None:
    assert not is_wandb(CSVLogger(tmp_path))
    assert all(hasattr(WandbLogger, name) for name in ("log_table", "log_image", "experiment"))


def test_without_wandb_it_says_what_to_install(bare: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    imposter = SimpleNamespace(log_metrics=lambda metrics: None, log_table=None, log_image=None, experiment=None)
    with pytest.raises(MissingExtraError, match=r'pip install "lightning-sgdinf\[wandb\]"$'):
        log_report(bare, imposter)
