from __future__ import annotations

import torch

from lightning_sgdinf.report import Example, ReportData
from lightning_sgdinf.report.extremes import collect_extremes
from lightning_sgdinf.scores import Scores


def data(**more: object) -> ReportData:
    values = torch.tensor([[0.5], [-2.0], [1.5], [-0.25], [0.0]])
    return ReportData(title="t", scores=Scores(values=values, queries=("loss",)), **more)  # type: ignore[arg-type]


def test_collect_extremes_are_in_the_order_of_their_ranks() -> None:
    extremes = collect_extremes(data(shown=2))
    assert extremes.example_ids == (1, 3, 0, 2)
    assert [row[0] for row in extremes.table.rows] == [1, 2, 4, 5]
    assert not extremes.has_images
    assert extremes.harm is None


def test_nobody_is_in_it_twice() -> None:
    assert collect_extremes(data(shown=4)).example_ids == (1, 3, 4, 0, 2)


def test_texts_and_columns_of_rows_are_columns() -> None:
    examples = {
        1: Example(row={"age": 31, "job": "cook", "rank": 7}, label="yes"),
        2: Example(row={"age": None, "job": 3}),
        0: Example(text="a text"),
    }
    table = collect_extremes(data(shown=2, examples=examples)).table

    def column(name: str) -> list[object]:
        return [row[table.columns.index(name)] for row in table.rows]

    assert column("age") == [31, None, None, None]
    assert column("job") == ["cook", None, None, "3"]
    assert column("rank of the row") == [7, None, None, None]
    assert column("text") == ["", "", "a text", ""]
