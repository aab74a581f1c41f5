"""Stored batches: what goes in comes out, or is not there, or is an error."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log import Draw, RunLog, Step
from tests.log.cases import make_step, write_run
from tests.log.plain_reader import plain_documents
from tests.log.test_damage import flip_in_every_dataset

STEPS = 9


def data_of(t: int, place: int) -> bytes:
    """Bytes of batch ``place`` of step ``t``, some of them longer than a chunk, one of them empty."""
    size = (0, 3000, 9000, 4096)[(t + place) % 4]
    return np.random.default_rng([t, place]).integers(0, 4, size, np.uint8).tobytes()


def read(data: bytes) -> bytes:
    return data


def with_batches(t: int) -> Step:
    """A made-up step whose draws have batches: two in one micro-batch, one in the other."""
    step = make_step(t)
    first, second = step.micro_batches
    draws = [replace(draw, batch=partial(read, data_of(t, place))) for place, draw in enumerate(first.draws)]
    last = Draw(example_ids=np.arange(2), batch=partial(read, data_of(t, 2)))
    return replace(step, micro_batches=(replace(first, draws=tuple(draws)), replace(second, draws=(last,), rank=3)))


def batches_of(step: Step) -> list[bytes | None]:
    return [draw.batch and draw.batch() for micro in step.micro_batches for draw in micro.draws]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", STEPS, step=with_batches, keep=lambda t: t % 4 == 0)
    return tmp_path / "run"


def test_batches_come_back(path: Path) -> None:
    with RunLog.open(path) as log:
        for t in (5, 0, 8, 5):
            step = log.step(t)
            assert batches_of(step) == [data_of(t, place) for place in range(3)]
            assert [micro.rank for micro in step.micro_batches] == [0, 3]
        assert log.verify().ok


def test_a_batch_is_read_when_its_segment_was_closed_meanwhile(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 100, step=with_batches, segment_bytes=1)
    with RunLog.open(tmp_path / "run") as log:
        assert len(list(log.segments())) > 4, "the test is degenerate"
        step = log.step(1)
        list(log.steps(100, 50))
        assert batches_of(step) == [data_of(1, place) for place in range(3)]


def test_steps_with_and_without_batches(tmp_path: Path) -> None:
    write_run(tmp_path / "run", STEPS, step=lambda t: with_batches(t) if 3 <= t < 6 else make_step(t))
    with RunLog.open(tmp_path / "run") as log:
        assert batches_of(log.step(4)) == [data_of(4, place) for place in range(3)]
        assert batches_of(log.step(2)) == batches_of(log.step(7)) == [None, None]
        assert log.verify().ok


def test_they_are_compressed_and_not_read_for_the_ids(tmp_path: Path) -> None:
    zeros = bytes(8 << 20)

    def heavy(t: int) -> Step:
        step = make_step(t)
        draw = replace(step.micro_batches[0].draws[0], batch=partial(read, zeros))
        return replace(step, micro_batches=(replace(step.micro_batches[0], draws=(draw,)),))

    write_run(tmp_path / "run", 3, step=heavy)
    with RunLog.open(tmp_path / "run") as log:
        assert log.size_bytes < 200_000
        assert log.step(1).example_ids.tolist() == make_step(1).example_ids.tolist()
        assert batches_of(log.step(1)) == [zeros]


def test_an_independent_reader_reads_them(path: Path) -> None:
    """From the specification alone."""
    with h5py.File(next(path.glob("seg-*"))) as file:
        chunk, bytes_, start = file["batch"].chunks[0], file["batch"][()], 0
        for t, (document, end) in enumerate(plain_documents(file)):
            for place, (size, crc) in enumerate(d["batch"] for m in document["micro_batches"] for d in m["draws"]):
                data = bytes_[start : start + size].tobytes()
                assert data == data_of(t, place)
                assert zlib.crc32(data) == crc
                start += -(-size // chunk) * chunk
            assert start == end


def test_a_changed_byte_is_noticed_before_the_batch_is_used(path: Path) -> None:
    segment = next(path.glob("seg-*"))
    flip_in_every_dataset(segment)["batch"]()
    with RunLog.open(path) as log:
        problem = log.verify().problem
        assert segment.name in problem
        wrong = [step.index for step in log.steps(0, STEPS) if not whole(step)]
    assert len(wrong) == 1


def whole(step: Step) -> bool:
    """Whether its batches are read; those that are must be right."""
    try:
        assert batches_of(step) == [data_of(step.index, place) for place in range(3)]
    except LogCorruptError:
        return False
    return True


def test_a_killed_run_keeps_whole_steps(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", STEPS, step=with_batches, finish=False)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    writer.abandon("the test is over")
    live = next(copy.glob("live-*"))
    with RunLog.open(copy) as log:
        assert len(log) == STEPS - 1
        assert batches_of(log.step(7)) == [data_of(7, place) for place in range(3)]
    with h5py.File(live, "r", swmr=True) as file:
        dataset = file["batch"]
        ends = [end for _, end in plain_documents(file)]
        chunk = next(
            dataset.id.get_chunk_info(i)
            for i in range(dataset.id.get_num_chunks())
            if dataset.id.get_chunk_info(i).chunk_offset[0] >= ends[4]
        )
    live.chmod(0o644)
    with live.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * min(chunk.size, 64))
    with RunLog.open(copy) as log:
        assert len(log) == 4  # steps 0 to 4 are whole
