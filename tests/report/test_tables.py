from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report import BeforeAfter, ReportData
from lightning_sgdinf.report.extremes import collect_extremes
from lightning_sgdinf.report.sinks import metrics
from lightning_sgdinf.report.tables import (
    Table,
    all_tables,
    before_after_table,
    cost_table,
    curve_table,
    detection_table,
    ranking_table,
    write_csv,
)


def test_a_row_has_a_cell_per_column() -> None:
    with pytest.raises(ConfigurationError, match="expected 2 cells in a row, one per column, got 3 in row 1"):
        Table("odd", "", ("a", "b"), ((1, 2), (1, 2, None)))


def test_a_ranking_shows_what_is_known_of_its_examples(full: ReportData, hostile: str) -> None:
    table = ranking_table(full, full.scores.most_harmful(6), "most-harmful")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    order = sorted(range(40), key=lambda j: full.scores.values[j, 0].item())
    assert [row["example id"] for row in rows] == order[:6]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["true label"] == hostile
    assert [row["known corrupt"] for row in rows] == ["yes"] * 3 + [""] * 3
    assert rows[0]["change of validation loss if left out"] == full.scores.values[order[0], 0].item()
    assert "negative = harmful" in table.caption


def test_a_ranking_shows_whose_scores_are_verified(bare: ReportData) -> None:
    verified = torch.arange(len(bare.scores)) % 2 == 0
    data = dataclasses.replace(bare, scores=dataclasses.replace(bare.scores, verified=verified))
    table = ranking_table(data, data.scores.most_harmful(4, "margin"), "most-harmful")
    assert table.columns[-1] == "verified"
    assert [row[-1] for row in table.rows] == ["yes" if row[1] % 2 == 0 else "no" for row in table.rows]


def test_a_ranking_shows_the_errors_of_sampling(bare: ReportData) -> None:
    errors = torch.rand(len(bare.scores), 2, generator=torch.Generator().manual_seed(0)).double()
    data = dataclasses.replace(bare, scores=dataclasses.replace(bare.scores, standard_error=errors))
    ranking = data.scores.most_harmful(4, "margin")
    table = ranking_table(data, ranking, "most-harmful")
    assert table.columns[-1] == "standard error"
    assert [row[-1] for row in table.rows] == [errors[row[1], 1].item() for row in table.rows]
    assert f"± {errors[ranking.example_ids[0], 1]:.2g}" in repr(ranking)
    numbers = metrics(data)
    assert numbers["report/standard_error/mean"] == pytest.approx(errors[:, 0].mean().item())
    assert numbers["report/standard_error/largest"] == errors[:, 0].max().item()
    both = collect_extremes(data)
    assert len(set(both.table.rows)) == len(both.table.rows) == 40
    assert [row[-1] for row in both.table.rows] == [errors[i, 0].item() for i in both.example_ids]


def test_columns_of_which_nothing_is_known_are_left_out(bare: ReportData) -> None:
    table = ranking_table(bare, bare.scores.most_harmful(3, "margin"), "most-harmful")
    assert table.columns == ("rank", "example id", "change of margin if left out")
    assert "negative" in table.caption


def test_tables_without_rows_are_left_out(bare: ReportData, full: ReportData) -> None:
    assert [table.name for table in all_tables(bare)] == ["most-harmful", "most-helpful"]
    assert [table.name for table in all_tables(full)] == [
        "most-harmful",
        "most-helpful",
        "before-after",
        "curves",
        "detection",
        "explanations",
        "costs",
    ]
    for table in all_tables(full):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_numbers_are_those_of_the_data(full: ReportData) -> None:
    metric, removed, before, after, change, low, high, p_value, test, runs = before_after_table(full).rows[0]
    assert (metric, removed, test, runs) == ("test error", 3, "paired t test", 4)
    assert abs(before - 0.2425) < 1e-12
    assert abs(after - 0.1675) < 1e-12
    assert low < change < high
    assert 0 < p_value < 1
    assert before_after_table(full).rows[1][5:9] == (None, None, None, None)
    assert [row[1:3] for row in curve_table(full).rows[3:]] == [(0, 0.25), (2, 0.3), (4, 0.35)]
    assert detection_table(full).rows[0][3:] == (3, 5, 40)
    assert cost_table(full).rows[1] == ("log", None, 123456)


def test_without_a_test_the_table_has_no_columns_for_it(bare: ReportData) -> None:
    change = BeforeAfter(metric="test error", before=(0.2,), after=(0.1,))
    table = before_after_table(dataclasses.replace(bare, before_after=(change,)))
    assert table.columns == ("metric", "before", "after", "change", "runs")
    assert table.rows == (("test error", 0.2, 0.1, -0.1, 1),)


def test_csv_reads_back(full: ReportData, tmp_path: Path) -> None:
    for table in all_tables(full):
        path = tmp_path / f"{table.name}.csv"
        write_csv(table, path)
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        assert head == list(table.columns)
        assert rows == [["" if cell is None else str(cell) for cell in row] for row in table.rows]
        back = [
            [type(cell)(text) if isinstance(cell, (int, float)) else text for cell, text in zip(row, line, strict=True)]
            for row, line in zip(table.rows, rows, strict=True)
        ]
        assert back == [["" if cell is None else cell for cell in row] for row in table.rows]
