"""Merged runs against their means, tests and counts by hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_sgdinf.report.merged import Bars, Panel, dots, removal_curves
from lightning_sgdinf.report.style import to_png
from lightning_sgdinf.studies import merged, merged_brief, merged_tables, summary
from lightning_sgdinf.studies.results import Choice, Measured, MethodCost, Point, RunResults
from lightning_sgdinf.tasks import merging

BASE = (0.10, 0.12, 0.11, 0.14)
AFTER = {30: (0.09, 0.10, 0.11, 0.11), 300: (0.12, 0.13, 0.12, 0.13)}


def run(seed: int, **changes: Any) -> RunResults:
    point = lambda method, count, error: Point(  # noqa: E731
        method=method, mode="last", count=count, measured=Measured(test_error=error, chosen_by=2 * error)
    )
    points = [point("", 0, BASE[seed]), *(point("loss", count, AFTER[count][seed]) for count in AFTER)]
    choice = Choice(
        method="loss", mode="last", strategy="validated", count=30, before=BASE[seed], after=AFTER[30][seed]
    )
    given = {
        "cell": "digits_mlp",
        "seed": seed,
        "settings": {"trainer": {"max_epochs": 3}},
        "training": {"seconds": 10.0},
        "methods": {
            "loss": MethodCost(seconds=2.0 + seed, read_bytes=400, auroc=0.9, average_precision=0.1 * (seed + 1)),
            "broken": MethodCost(failed="NonFiniteError: no number"),
        },
        "points": tuple(points),
        "choices": (choice,),
        "harmful": {"loss": (3, 1)},
    }
    return RunResults(**{**given, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(4):
        run(seed).save(tmp_path / "digits_mlp" / f"seed_{seed}")
    buffer = io.BytesIO()
    names = np.array(["zero", "one"], np.str_)
    images = np.full((2, 8, 8, 1), 99, np.uint8)
    np.savez_compressed(buffer, ids=np.array([1, 3]), images=images, labels=names, true_labels=names[[0, 0]])
    (tmp_path / "digits_mlp" / "seed_0" / "found.npz").write_bytes(buffer.getvalue())
    return tmp_path


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def test_results_survive_the_disk(folder: Path) -> None:
    place = folder / "digits_mlp" / "seed_2"
    assert RunResults.load(place / "results.json") == run(2, place=place)


def test_the_table_has_means_deviations_and_corrected_tests(folder: Path) -> None:
    target = merged.merge([folder])
    none, thirty, three_hundred = rows(target / "table.csv")
    assert (none["method"], none["runs"]) == ("nothing left out", "4")
    assert float(none["test error"]) == pytest.approx(np.mean(BASE))
    assert float(thirty["std"]) == pytest.approx(np.std(AFTER[30], ddof=1))
    assert float(thirty["change"]) == pytest.approx(np.mean(AFTER[30]) - np.mean(BASE))
    p_values = [stats.ttest_rel(AFTER[count], BASE).pvalue for count in AFTER]
    assert [float(row["p (t)"]) for row in (thirty, three_hundred)] == pytest.approx(p_values)
    low, high = sorted(p_values)
    adjusted = {low: 2 * low, high: max(2 * low, high)}
    for row, p_value in zip((thirty, three_hundred), p_values, strict=True):
        assert float(row["p (t), Holm"]) == pytest.approx(adjusted[p_value])
    assert float(thirty["p (Wilcoxon)"]) == pytest.approx(2 / 2**3)  # three of four differ, all in one direction
    assert float(thirty["seconds to rank"]) == 3.5
    assert thirty["bytes of states read"] == "400"
    assert float(thirty["held-out value"]) == pytest.approx(2 * np.mean(AFTER[30]))


def test_what_choices_did_and_what_methods_took(folder: Path) -> None:
    target = merged.merge([folder])
    (choice,) = rows(target / "choices.csv")
    assert [choice[key] for key in ("helped", "harmed", "nothing changed", "left out, mean")] == [
        *("3", "0", "0", "30.0")
    ]
    changes = [after - before for before, after in zip(BASE, AFTER[30], strict=True)]  # -.01, -.02, 0, -.03
    assert sorted(round(100 * change) for change in changes) == [-3, -2, -1, 0]
    assert float(choice["p (Wilcoxon)"]) == pytest.approx(2 / 2**3)  # all signs equal; the one without a change is out
    loss, broken = rows(target / "methods.csv")
    assert float(loss["average precision"]) == pytest.approx(0.25)
    assert float(loss["seconds per second of training"]) == pytest.approx(0.35)
    assert (broken["runs"], broken["why it gave nothing"]) == ("0", "NonFiniteError: no number")


def test_the_page_shows_figure_tables_and_pictures(folder: Path) -> None:
    target = merged.merge([folder], folder / "elsewhere")
    page = (target / "page.html").read_text()
    for part in (
        "digits_mlp",
        "Found most harmful: digits_mlp, seed 0",
        "#3",
        "should be zero",
        "Fewer than six runs",
        "Holm",
    ):
        assert part in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert (target / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_drawn_in_percent_on_a_logarithmic_axis() -> None:
    runs = [run(seed) for seed in range(4)]
    curves = merged_tables.curves(runs, "last")
    panels = (Panel(title="one", base=BASE, curves=curves), Panel(title="two", base=BASE[:1], curves=curves))
    first, second = removal_curves(panels).axes
    assert first.get_xscale() == "log"
    assert first.get_title(loc="left") == "one (4 runs)"
    line, level = first.lines
    assert line.get_xdata().tolist() == [30, 300]
    assert line.get_ydata() == pytest.approx([100 * np.mean(AFTER[30]), 100 * np.mean(AFTER[300])])
    assert level.get_ydata()[0] == pytest.approx(100 * np.mean(BASE))
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    half = stats.t.ppf(0.975, 3) * np.std(AFTER[30], ddof=1) / 2
    assert np.isclose(band, 100 * (np.mean(AFTER[30]) - half)).any()
    assert second.lines[0].get_color() == line.get_color()


def test_a_mean_of_fewer_runs_is_told_from_the_others() -> None:
    few, all_of_them = (merged_tables.curves([run(seed) for seed in range(n)], "last")["loss"] for n in (2, 4))
    panel = Panel(title="one", base=BASE, curves={"loss": all_of_them, "exact": few})
    (axes,) = removal_curves((panel,)).axes
    assert axes.get_title(loc="left") == "one (4 runs)"
    mean = f"{100 * (BASE[0] + BASE[1]) / 2:.2f}"
    assert axes.get_xlabel() == f"training examples left out\n2 runs ({mean} with nothing left out): exact"


def test_many_methods_of_fewer_runs_leave_room_for_the_axes() -> None:
    few, all_of_them = (merged_tables.curves([run(seed) for seed in range(n)], "last")["loss"] for n in (2, 4))
    many = {f"a_method_with_a_long_name_{n}": few for n in range(12)}
    figure = removal_curves((Panel(title="one", base=BASE, curves={"loss": all_of_them, **many}),) * 2)
    to_png(figure)  # the layout, which warns if there is no room
    assert all(axes.get_position().width > 0.3 and axes.get_position().height > 0.25 for axes in figure.axes)


def test_runs_that_differ_in_settings_are_cells_of_their_own(folder: Path) -> None:
    run(0, settings={"trainer": {"max_epochs": 5}}).save(folder / "longer")
    assert list(merged.collected([folder])) == ["digits_mlp, trainer.max_epochs=3", "digits_mlp, trainer.max_epochs=5"]


def test_methods_of_one_run_that_were_ranked_apart_come_together(tmp_path: Path) -> None:
    run(1).save(tmp_path / "a")
    other = Point(method="random", mode="last", count=30, measured=Measured(test_error=0.2))
    run(1, points=(other,), methods={"random": MethodCost()}, choices=()).save(tmp_path / "b")
    ((joined,),) = merged.collected([tmp_path]).values()
    assert set(joined.methods) == {"loss", "broken", "random"}
    assert {point.method for point in joined.points} == {"", "loss", "random"}
    assert len(joined.choices) == 1


def test_jobs_without_removals(tmp_path: Path) -> None:
    for number, (model, seed, result) in enumerate([("mlp", 0, 0.5), ("mlp", 1, 0.7), ("cnn", 0, 0.2)]):
        (tmp_path / str(number)).mkdir()
        row = {"seed": seed, "dataset": "digits", "model": model, "result": result, "override trainer.max_epochs": "2"}
        summary.write_row(tmp_path / str(number), row)
    target = merged.merge([tmp_path])
    mlp, cnn = rows(target / "table.csv")
    assert (mlp["configuration"], mlp["jobs"], float(mlp["result"])) == ("model=mlp", "2", 0.6)
    assert float(mlp["result, std"]) == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert cnn["configuration"] == "model=cnn"
    axes = dots(Bars(metric="result", values={"mlp": [0.5, 0.7], "cnn": [0.2]})).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mlp", "cnn"]
    assert axes.lines[0].get_xdata().tolist() == [0.5, 0.7]


def test_other_files_of_that_name_are_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "results.json").write_text('{"format": 7}')
    (folder / "digits_mlp" / "results.json").write_text("nothing")
    assert len(merged.collected([folder])["digits_mlp"]) == 4
    assert caplog.text.count("skipped: ") == 2


def test_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merging.main([str(folder), "--into", str(folder / "out")]) == 0
    assert (folder / "out" / "page.html").is_file()
    assert str(folder / "out" / "page.html") in capsys.readouterr().out
    (folder / "empty").mkdir()
    assert merging.main([str(folder / "empty")]) == 1
    assert "give the folder of a sweep" in capsys.readouterr().err
    assert merging.main([str(folder / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err


SWEPT = [
    {"job": str(j), "seed": j, "model": model, "measured": "mean loss, test data", "before": before, "after": after}
    for j, (model, before, after) in enumerate(
        [("a", 0.5, 0.4), ("a", 0.6, 0.45), ("a", 0.4, 0.45), ("b", 0.3, 0.2), ("b", float("nan"), 0.1)]
    )
]


def test_the_head_says_what_cleansing_changed_and_how_sure_that_is() -> None:
    found, sure = merged_brief.brief(SWEPT)
    assert found == (
        "model=b, mean loss, test data: 0.3 before, 0.2 after (one job).",
        "model=a, mean loss, test data: 0.5 before, 0.4333 after (means of 3 jobs: lower in 2, higher in 1).",
    )
    p_value = stats.ttest_rel([0.4, 0.45, 0.45], [0.5, 0.6, 0.4]).pvalue
    assert sure == (
        "model=b: one job, so whether another seed would change likewise is not known.",
        f"model=a: the change may be chance (paired t test over 3 runs: p = {p_value:.3f}).",
    )
    shown = merged.merged_runs({}, SWEPT)
    assert shown.bars is not None
    assert (shown.bars.metric, list(shown.bars.values)) == ("mean loss, test data, after", ["model=a", "model=b"])
    for sentence in (*found, *sure):
        assert sentence in shown.page


def test_the_head_of_errors_is_in_percent_and_short() -> None:
    rows = [{"model": str(j), "test_error_before": 0.1, "test_error_after": 0.05 + j / 100} for j in range(9)]
    found, sure = merged_brief.brief(rows)
    assert found[0] == "model=0, test error: 10 % before, 5 % after (one job)."
    assert found[-1] == "3 more configurations are in the tables."
    assert (len(found), len(sure)) == (7, 6)
    assert merged_brief.brief([{"model": "a", "result": 0.5}]) == ((), ())
