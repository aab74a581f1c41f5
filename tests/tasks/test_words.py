"""The command on texts and on rows, of which there are very few."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from lightning_sgdinf.tasks.main import main
from tests.zoo.documents import write_census, write_posts

TINY = [
    *("dataset.val_size=20", "dataset.test_size=20", "dataset.batch_size=16", "dataset.label_noise=0.1"),
    *("model=logreg", "trainer.max_epochs=2", "trainer.accelerator=cpu", "cleansing.grid=[2]", "report=short"),
    *("report.explained=2", "runner.certificate=off", "report.shown=4", "hydra.run.dir=out"),
]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sgdinf", *TINY, *arguments])
    main()
    return Path("out/report/report.html").read_text(encoding="utf-8")


def held(page: str) -> tuple[dict[str, Any], Any]:
    """The index of what the page holds, and a reader of its strings."""
    index, text = (re.findall(rf'id="explorer-{name}">(.*?)</script>', page)[0] for name in ("index", "data"))

    def strings(reference: dict[str, int]) -> list[str]:
        part = text[reference["at"] : reference["at"] + reference["size"]]
        return json.loads(zlib.decompress(base64.b64decode(part)))

    return json.loads(index), strings


def test_texts(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_posts(in_folder / "data" / "20news")
    page = run(monkeypatch, "dataset=newsgroups", "data_dir=data", "dataset.source.words=12")
    assert page.count("<blockquote") >= 8
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in page, "a post is text, whatever is written in it"
    index, strings = held(page)
    texts = strings(index["texts"]["values"])
    assert len(texts) == index["count"] == 39
    assert all("Number" in text for text in texts)
    assert set(strings(index["labels"]["names"])) == {"ibm", "mac"}
    assert set(strings(index["predictions"]["names"])) <= {"ibm", "mac"}
    assert index["corrupt"] is not None
    groups = [column["group"] for column in index["columns"]]
    assert groups[:3] == ["query", "method", "method"]
    assert all("Number" in column["about"]["words"] for column in index["columns"] if column["group"] == "single")


def test_rows(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_census(in_folder / "data" / "adult")
    page = run(monkeypatch, "dataset=adult", "data_dir=data", "dataset.source.train_rows=60", "dataset.train_size=30")
    assert page.count("Never-married") >= 8
    assert "native-country</th>" in page
    index, _ = held(page)
    columns = {column["name"] for column in index["table"]["columns"]}
    assert {"age", "workclass", "capital-gain", "native-country"} <= columns
    assert "native-country" in Path("out/report/tables/most-harmful.csv").read_text()
