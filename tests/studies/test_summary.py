from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_sgdinf.studies import summary


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_jobs_in_order_of_their_numbers_and_all_columns(tmp_path: Path) -> None:
    for job in (10, 2, 0):
        (tmp_path / str(job)).mkdir()
        summary.write_row(tmp_path / str(job), {"seed": job, **({"extra": "yes"} if job == 2 else {})})
    table = summary.assemble(tmp_path)
    assert [(r["job"], r["seed"], r["extra"]) for r in rows(table)] == [
        ("0", "0", ""),
        ("2", "2", "yes"),
        ("10", "10", ""),
    ]


def test_jobs_side_by_side_leave_a_whole_table(tmp_path: Path) -> None:
    def job(number: int) -> None:
        folder = tmp_path / f"a={number}"
        folder.mkdir()
        summary.write_row(folder, {"seed": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(40)))
    assert len(rows(summary.assemble(tmp_path))) == 40
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_a_row_is_replaced_not_added(tmp_path: Path) -> None:
    summary.write_row(tmp_path, {"error": 0.5})
    summary.write_row(tmp_path, {"error": 0.25})
    assert [r["error"] for r in rows(summary.assemble(tmp_path))] == ["0.25"]
