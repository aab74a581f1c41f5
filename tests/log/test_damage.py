"""Nothing that differs from what was written is ever returned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from lightning_sgdinf.errors import (
    LogCorruptError,
    LogError,
    LogNotFoundError,
    LogVersionError,
    StateNotStoredError,
)
from lightning_sgdinf.log import LogWriter, RunLog
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.log.watch import progress
from tests.log.cases import assert_same_state, described, make_header, make_state, make_step, write_run

STEPS = 12
CODECS = ["none", "delta", "delta2"]


def keep(t: int) -> bool:
    return t % 3 != 1


@pytest.fixture(scope="module", params=CODECS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished log of two segments."""
    path = tmp_path_factory.mktemp("original") / "run"
    write_run(path, STEPS, keep=keep, codec=request.param, segment_bytes=1, state=state)
    assert len(list(path.glob("seg-*"))) == 2, "the test is degenerate"
    return path


def state(t: int):
    return make_state(t, momentum=t > 5)


@pytest.fixture
def log_path(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def read_all(path: Path) -> None:
    """Read everything the ordinary way; whatever comes back must be right."""
    with RunLog.open(path) as log:
        assert described(log.header) == described(make_header())
        assert len(log) == STEPS
        for step in log.steps(STEPS, 0):
            assert described(step) == described(make_step(step.index))
        for index in range(STEPS, -1, -1):
            log.state_checksum(index)
            try:
                read = log.state(index)
            except StateNotStoredError:
                assert not keep(index)
            else:
                assert_same_state(read, state(index))
        assert log.average is not None
        assert log.average["w"].tolist() == [0.5, 0.5]
        assert log.state_indices.tolist() == [t for t in range(STEPS) if keep(t)] + [STEPS]


def test_the_undamaged_log_reads(log_path: Path) -> None:
    read_all(log_path)


def flip_in_every_dataset(path: Path) -> dict[str, Callable[[], None]]:
    """Per dataset of a file, how to change one byte of its content where it lies in the file."""
    flips = {}
    with h5py.File(path, "r") as file:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.size:
                if item.chunks is None:
                    offset, size = item.id.get_offset(), item.nbytes
                else:
                    chunk = item.id.get_chunk_info(item.id.get_num_chunks() // 2)
                    offset, size = chunk.byte_offset, min(chunk.size, item.nbytes)
                flips[name] = lambda: flip_byte(path, offset + min(size - 1, 3))

        file.visititems(visit)
    return flips


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 0x55]))


def problem_of(path: Path) -> str:
    """What opening or verifying a log says."""
    try:
        with RunLog.open(path) as log:
            return log.verify().problem
    except LogCorruptError as error:
        return str(error)


def test_a_flipped_byte_in_any_dataset_is_noticed(log_path: Path) -> None:
    seen = []
    for part in sorted(log_path.glob("*.h5")):
        whole = part.read_bytes()
        for name, flip in flip_in_every_dataset(part).items():
            flip()
            with suppress(LogCorruptError):  # not every byte is needed to read everything once
                read_all(log_path)
            assert part.name in problem_of(log_path)
            part.write_bytes(whole)
            seen.append(name)
    assert {"page", "page_end", "header", "layout", "state/float32"} <= set(seen)
    assert {"summary", "average/float32", "average/layout", "state/layout"} <= set(seen)
    read_all(log_path)


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(log_path: Path) -> None:
    rng = np.random.default_rng(1)
    noticed = 0
    for part in sorted(log_path.glob("*.h5")):
        whole = part.read_bytes()
        for offset in rng.integers(0, len(whole), 15).tolist():
            flip_byte(part, offset)
            try:
                read_all(log_path)  # compares all that it reads with the truth
            except LogError:
                noticed += 1
            part.write_bytes(whole)
    assert noticed > 5, "the test is degenerate"


def test_truncated_files(log_path: Path) -> None:
    for part in sorted(log_path.glob("*.h5")):
        whole = part.read_bytes()
        for size in (0, 7, 40, len(whole) // 2, len(whole) - 1):
            part.write_bytes(whole[:size])
            with pytest.raises(LogCorruptError, match=part.name):
                read_all(log_path)
        part.write_bytes(whole)


def test_missing_segments(log_path: Path) -> None:
    for part in sorted(log_path.glob("seg-*.h5")):
        whole = part.read_bytes()
        part.unlink()
        with pytest.raises(LogCorruptError, match=f"{part.name} missing"):
            RunLog.open(log_path)
        part.write_bytes(whole)
    (log_path / "end.h5").unlink()
    with RunLog.open(log_path) as log:
        assert (log.finished, len(log)) == (False, STEPS - 1)
    sorted(log_path.glob("seg-*.h5"))[0].unlink()
    with pytest.raises(LogCorruptError, match="expected 0"):
        RunLog.open(log_path)


def test_swapped_segments(log_path: Path, tmp_path: Path) -> None:
    first, second = sorted(log_path.glob("seg-*.h5"))
    shutil.copy(first, tmp_path / "kept")
    shutil.copy(second, first)
    with pytest.raises(LogCorruptError, match="begins with step 6, its name says 0"):
        read_all(log_path)
    shutil.copy(tmp_path / "kept", first)
    write_run(tmp_path / "other", STEPS, segment_bytes=1, state=state, header=make_header(run_id="00"))
    shutil.copy(tmp_path / "other" / second.name, second)
    with pytest.raises(LogCorruptError, match="run 00"):
        read_all(log_path)
    write_run(tmp_path / "longer", STEPS, segment_bytes=1, state=lambda t: state(2 * t if t > 5 else t))
    shutil.copy(tmp_path / "longer" / second.name, second)
    with pytest.raises(LogCorruptError, match="the end mark says"):
        read_all(log_path)
    with (log_path / "seg-0000000099.h5").open("wb") as file:
        file.write(b"stranger")
    with pytest.raises(LogCorruptError, match="not part of this run"):
        read_all(log_path)


def test_sizes_that_are_not_there_are_not_allocated(log_path: Path) -> None:
    part = sorted(log_path.glob("seg-*.h5"))[0]
    for name in ("page", "page_end"):
        whole = part.read_bytes()
        with h5py.File(part, "r+") as file:
            file[name].resize(2**45, axis=0)
        with pytest.raises(LogCorruptError, match=f"{name}.*claimed"):
            read_all(log_path)
        part.write_bytes(whole)


def test_unknown_versions_are_refused(log_path: Path) -> None:
    for name in ("end.h5", "seg-0000000006.h5"):
        whole = (log_path / name).read_bytes()
        with h5py.File(log_path / name, "r+") as file:
            file.attrs["format"] = "sgdinf-log/2"
        with pytest.raises(LogVersionError, match=r"'sgdinf-log/2'.*reads 'sgdinf-log"):
            read_all(log_path)
        with h5py.File(log_path / name, "r+") as file:
            del file.attrs["format"]
        with pytest.raises(LogVersionError, match="says no format"):
            read_all(log_path)
        (log_path / name).write_bytes(whole)


def test_another_version_is_no_damage_whatever_else_is_different(log_path: Path) -> None:
    """The version is looked at before anything else, also by those who write; nothing happens to the files."""
    readers = (read_all, carry_on)
    for name, kind, attempts in (
        ("end.h5", "sgdinf-log-end", (*readers, recover, progress)),
        ("seg-0000000000.h5", "sgdinf-log", readers),
    ):
        whole = (log_path / name).read_bytes()
        with h5py.File(log_path / name, "r+") as file:
            for member in list(file):
                del file[member]
            file.attrs.clear()
            file.attrs["format"] = f"{kind}/10"
        there = {p.name: p.read_bytes() for p in log_path.glob("*.h5")}
        for attempt in attempts:
            with pytest.raises(LogVersionError, match=rf"{name}.*{kind}/10.*update this one"):
                attempt(log_path)
        assert {p.name: p.read_bytes() for p in log_path.glob("*.h5")} == there
        (log_path / name).write_bytes(whole)


def carry_on(path: Path) -> None:
    LogWriter(path, header=make_header(), continue_at=3)


def test_drafts_of_the_format_are_no_damage_either(log_path: Path) -> None:
    with h5py.File(log_path / "seg-0000000000.h5", "r+") as file:
        del file["page"], file["page_end"]
        file["step_end"] = [1, 2, 3]
    with pytest.raises(LogVersionError, match=r"draft of format 'sgdinf-log/1'.*record the run again"):
        read_all(log_path)


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(LogNotFoundError, match="no such directory"):
        RunLog.open(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LogNotFoundError, match=r"holds no segments of a log, but 'notes\.txt'"):
        RunLog.open(tmp_path)
    with pytest.raises(LogNotFoundError, match="is a file"):
        RunLog.open(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogNotFoundError, match="but nothing"):
        RunLog.open(tmp_path / "empty")
