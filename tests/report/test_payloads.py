from __future__ import annotations

import numpy as np
import pytest

from lightning_sgdinf.report import payloads
from lightning_sgdinf.report.embedded_data import EmbeddedData


@pytest.fixture
def embedded() -> EmbeddedData:
    return EmbeddedData()


def incompressible(i: int, length: int) -> str:
    return "".join(chr(c) for c in np.random.default_rng(i).integers(33, 127, length))


def test_little_is_held_whole_and_nothing_is_said(embedded: EmbeddedData) -> None:
    notes: list[str] = []
    order = [2, 0, 1]
    part = payloads.texts(embedded, {0: "a", 1: "b", 2: "c"}, order, notes)
    assert part is not None
    assert part["ids"] is None
    assert payloads.texts(embedded, {}, order, notes) is None
    assert payloads.table(embedded, {}, order, notes) is None
    assert notes == []


def test_those_of_whom_nothing_is_known_take_no_room(embedded: EmbeddedData) -> None:
    part = payloads.texts(embedded, {5: "a"}, range(1000), [])
    assert part is not None
    assert part["ids"]["type"] == "u4"


def test_long_texts_are_shortened_first(embedded: EmbeddedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "WORDS", 40_000)
    by_id = {i: incompressible(i, 5000) for i in range(20)}
    notes: list[str] = []
    part = payloads.texts(embedded, by_id, range(20), notes)
    assert part is not None
    assert part["ids"] is None
    assert notes == ["Texts are here up to 1,000 characters."]
    assert len(embedded) < 40_000


def test_then_those_at_the_ends_are_kept(embedded: EmbeddedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "WORDS", 3000)
    by_id = {i: incompressible(i, 5000) for i in range(40)}
    notes: list[str] = []
    payloads.texts(embedded, by_id, range(40), notes)
    assert notes[0] == "Texts are here up to 120 characters."
    assert notes[1].startswith("Texts are here for the ")
    assert len(embedded) < 3500


def test_html_is_never_shortened(embedded: EmbeddedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "WORDS", 20_000)
    notes: list[str] = []
    payloads.htmls(embedded, {i: incompressible(i, 5000) for i in range(20)}, range(20), notes)
    (note,) = notes
    assert note.startswith("What examples look like is here for the ")


def test_columns_are_numbers_or_words(embedded: EmbeddedData) -> None:
    rows = {0: {"age": 3, "work": "a", "mixed": 1}, 1: {"age": "", "work": "b", "mixed": "x"}, 2: {"new": 0.5}}
    part = payloads.table(embedded, rows, [0, 1, 2], [])
    assert part is not None
    kinds = {column["name"]: column.get("values", column.get("codes"))["type"] for column in part["columns"]}
    assert kinds == {"age": "f8", "work": "u1", "mixed": "u1", "new": "f8"}


def test_wide_tables_keep_the_ends(embedded: EmbeddedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "WORDS", 20_000)
    values = np.random.default_rng(0).random((200, 30))
    notes: list[str] = []
    payloads.table(
        embedded,
        {i: dict(zip("abcdefghijklmnopqrstuvwxyzABCD", row, strict=True)) for i, row in enumerate(values)},
        range(200),
        notes,
    )
    (note,) = notes
    assert note.startswith("Rows are here for the ")
    assert len(embedded) < 24_000


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_contributions_keep_their_proportions_at_any_size(embedded: EmbeddedData, scale: float) -> None:
    values = np.array([[1.0, 0.0], [-0.5, 0.0], [0.25, 0.0]]) * scale
    part = payloads.epochs(embedded, values, [0, 1], [])
    assert part["count"] == 3
    assert part["unit"] == scale


def test_many_epochs_keep_the_ends(embedded: EmbeddedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "EPOCHS", 1000)
    notes: list[str] = []
    part = payloads.epochs(embedded, np.ones((10, 100)), range(100), notes)
    assert part["ids"] is not None
    assert notes == ["What each epoch contributed is here for the 35 most harmful and most helpful examples."]
