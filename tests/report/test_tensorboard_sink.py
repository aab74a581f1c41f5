from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lightning_sgdinf.report import ReportData, log_report
from lightning_sgdinf.report.tables import Table
from lightning_sgdinf.report.tensorboard_sink import is_tensorboard, markdown

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own


@pytest.fixture(scope="module")
def read(full: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path_factory.mktemp("board"), name="", version="")
    log_report(full, logger, files=False)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return events.Reload()


def test_curves_have_the_number_left_out_as_their_step(full: ReportData, read: Any) -> None:
    first, second = full.curves
    for tag, curve in (("random_x", second), ("own", first)):
        points = read.Scalars(f"report/curve/{tag}")
        assert tuple(point.step for point in points) == curve.counts
        assert [point.value for point in points] == pytest.approx(curve.mean.tolist())


def test_numbers_are_scalars(full: ReportData, read: Any) -> None:
    (point,) = read.Scalars("report/test_error/after")
    assert point.value == pytest.approx(0.1675)
    assert "report/own/auroc" in read.Tags()["scalars"]
    del full


def test_the_histogram_counts_every_example(full: ReportData, read: Any) -> None:
    (event,) = read.Histograms("report/scores")
    assert event.histogram_value.num == len(full.scores)
    assert event.histogram_value.min == pytest.approx(full.scores.values[:, 0].min().item())


def test_figures_and_pictures_are_images(read: Any) -> None:
    tags = set(read.Tags()["images"])
    assert {"report/score-distribution", "report/cleansing-curves", "report/most-harmful"} <= tags
    (event,) = read.Images("report/most-harmful")
    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        assert min(image.size) > 200


def test_the_ranking_is_text_with_contributions(full: ReportData, read: Any) -> None:
    text = _text(read, "report/ranking/text_summary")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    ids = [*full.scores.most_harmful(6).example_ids, *reversed(full.scores.most_helpful(6).example_ids)]
    assert [int(row.split(" | ")[1]) for row in rows[2:]] == ids
    assert rows[0].endswith("per epoch (low: it harmed) |")
    assert all(set(row.split(" | ")[-1].removesuffix(" |")) <= set("▁▂▃▄▅▆▇█") for row in rows[2:])
    assert "negative = harmful" in text
    assert "report/detection/text_summary" in read.Tags()["tensors"]


def test_result_and_warnings_are_text_and_nothing_more(read: Any, hostile: str) -> None:
    text = _text(read, "report/result/text_summary")
    assert "Warning:" in text
    assert hostile not in text
    assert "&lt;script&gt;" in text


def test_text_in_a_table_stays_text() -> None:
    table = Table("t", "a *caption*", ("a|b", "c"), (("<b>", None), ("x\ny", 0.123456)))
    assert markdown(table).splitlines() == [
        r"a \*caption\*",
        "",
        r"| a\|b | c |",
        "| --- | --- |",
        "| &lt;b&gt; |  |",
        "| x y | 0.1235 |",
    ]


def test_a_logger_with_a_folder_gets_page_and_tables_there(bare: ReportData, tmp_path: Path) -> None:
    log_report(bare, CSVLogger(tmp_path, name="", version=""))
    assert (tmp_path / "report" / "report.html").exists()
    assert (tmp_path / "report" / "tables" / "most-harmful.csv").exists()


def test_it_is_told_by_name(tmp_path: Path) -> None:
    assert is_tensorboard(TensorBoardLogger(tmp_path))
    assert not is_tensorboard(CSVLogger(tmp_path))


def _text(read: Any, tag: str) -> str:
    (event,) = read.Tensors(tag)
    (value,) = event.tensor_proto.string_val
    return value.decode()
