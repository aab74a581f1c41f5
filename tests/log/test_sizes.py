"""What a writer says of the size of its log."""

from __future__ import annotations

from pathlib import Path

from lightning_sgdinf.log import LogWriter, RunLog
from lightning_sgdinf.state import Layout
from tests.log.cases import make_header, make_state, make_step, put, write_run

SIZE = 4000  # numbers per state


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "run", header=make_header(), codec="none", segment_bytes=1)
    for t in range(40):  # several segments
        put(writer, make_state(t, size=SIZE, momentum=False), make_step(t), store=t % 2 == 0)
    sizes = writer.sizes()
    plain = sum(v.numel() * v.element_size() for *_, v in make_state(0, size=SIZE, momentum=False).items())
    assert 20 * plain <= sizes.states <= 20 * plain + 20 * 4096  # chunks of small buffers are filled up
    assert sizes.total == sum(p.stat().st_size for p in (tmp_path / "run").glob("*.h5"))
    assert sizes.total > sizes.states
    last = make_state(40, size=SIZE, momentum=False)
    layout = Layout.of(last)
    flat = writer.take_buffers(layout)
    layout.pack(last, flat)
    writer.finish(layout, flat)
    with RunLog.open(tmp_path / "run") as log:
        assert log.size_bytes < sizes.total + 2 * plain + 30_000  # the last state, and the end mark


def test_nothing_is_said_after_logging_has_stopped(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", 3, finish=False)
    writer.stopped = "the disk is full"
    assert writer.sizes().total == 0
    writer.stopped = ""
    writer.abandon("the test is over")
