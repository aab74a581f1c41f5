from __future__ import annotations

import pytest

from lightning_sgdinf.ranking import Ranking, score_name, sign_sentence


def ranking(**fields) -> Ranking:
    standard = {
        "example_ids": (12, 3),
        "scores": (-0.5, -1.25e-7),
        "ranks": (1, 2),
        "labels": ("cat", "<b>"),
        "query": "validation loss",
        "better": "lower",
        "total": 90,
    }
    return Ranking(**{**standard, **fields})


@pytest.mark.parametrize(
    ("better", "end", "sentence"),
    [
        ("lower", "harmful", "negative = harmful: leaving it out is predicted to lower q"),
        ("lower", "helpful", "positive = helpful: leaving it out is predicted to raise q"),
        ("higher", "harmful", "positive = harmful: leaving it out is predicted to raise q"),
        ("higher", "helpful", "negative = helpful: leaving it out is predicted to lower q"),
        ("order", "harmful", "lowest = most harmful: a ranking, not a predicted change"),
        ("order", "helpful", "highest = most helpful: a ranking, not a predicted change"),
    ],
)
def test_the_sign_is_spelled_out(better, end, sentence: str) -> None:
    assert sign_sentence("q", better, end) == sentence


def test_it_prints_as_a_table_under_a_sentence_with_the_sign() -> None:
    assert repr(ranking()).splitlines() == [
        "2 of 90 training examples; score = change of validation loss had the example been left out "
        "(negative = harmful: leaving it out is predicted to lower validation loss)",
        "rank  id      score  label",
        "   1  12       -0.5    cat",
        "   2   3  -1.25e-07    <b>",
    ]


def test_without_labels_the_table_has_no_such_column() -> None:
    plain = ranking(labels=None, better="higher")
    assert "positive = harmful: leaving it out is predicted to raise validation loss" in repr(plain)
    assert repr(plain).splitlines()[1].split() == ["rank", "id", "score"]
    assert [row.label for row in plain] == [None, None]


def test_rows_come_in_order_with_named_fields() -> None:
    assert [(row.example_id, row.score, row.rank, row.label) for row in ranking()] == [
        (12, -0.5, 1, "cat"),
        (3, -1.25e-7, 2, "<b>"),
    ]


def test_the_notebook_table_escapes_labels() -> None:
    text = ranking()._repr_html_()
    assert "&lt;b&gt;" in text
    assert "<b>" not in text


def test_what_only_ranks_predicts_no_change() -> None:
    table = ranking(query="margin of the label", better="order")
    assert table.header == (
        "2 of 90 training examples; score = margin of the label "
        "(lowest = most harmful: a ranking, not a predicted change)"
    )
    assert score_name("margin", "order") == "margin"
    assert score_name("loss", "lower") == "change of loss if left out"
