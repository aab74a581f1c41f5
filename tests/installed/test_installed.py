"""The installed package has what it needs beside its modules; run from a wheel by ``make wheel``."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import torch

from lightning_sgdinf import Scores
from lightning_sgdinf.tasks.configuration import conf_dir


def test_configuration_and_commands_are_there() -> None:
    groups = {folder.name for folder in Path(conf_dir()).iterdir() if folder.is_dir()}
    assert groups >= {"dataset", "estimator", "experiment", "logger", "model", "optimizer", "query", "trainer"}
    commands = {entry.name: entry.load() for entry in entry_points(group="console_scripts") if "sgdinf" in entry.value}
    assert set(commands) == {"sgdinf", "sgdinf-log", "sgdinf-merge"}


def test_a_page_can_be_made(tmp_path: Path) -> None:
    browser = files("lightning_sgdinf.report").joinpath("browser")
    assert {file.name for file in browser.iterdir()} >= {"explorer.js", "explorer.html", "explorer.css"}
    page = Scores(values=torch.zeros(3, 1), queries=("loss",)).report(tmp_path / "page.html")
    assert "How sure" in page.read_text(encoding="utf-8")
