"""A chunk that says it is larger than its dataset's are is refused before room is made for it."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log import RunLog
from tests.log.cases import assert_same_state, make_state, write_run
from tests.log.test_batches import with_batches

STATES = 6


def state(t: int):
    return make_state(t, size=3000, momentum=False)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("logs")
    for codec in ("delta", "small", "delta2"):
        write_run(place / codec, STATES, state=state, codec=codec)
    write_run(place / "batches", STATES, step=with_batches)
    return place


def zstd(size: int, stored: bytes) -> bytes:
    """A frame that says so many bytes, followed by what it had."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", size) + stored[9:]


def blosc(size: int, stored: bytes) -> bytes:
    return stored[:4] + struct.pack("<I", size) + stored[8:]


def change_last_chunk(path: Path, name: str, change) -> int:
    """Change the stored bytes of the last chunk of a dataset; its row."""
    with h5py.File(path, "r+") as file:
        stored = file[name].id
        offset = stored.get_chunk_info(stored.get_num_chunks() - 1).chunk_offset
        mask, data = stored.read_direct_chunk(offset)
        stored.write_direct_chunk(offset, change(data), mask)
        return offset[0]


HUGE = 1 << 45


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("small", lambda data: zstd(HUGE, data)), ("small", lambda data: zstd(0, data)),
        ("small", lambda data: b"\x50\x2a\x4d\x18" + data), ("small", lambda data: data[:5]),
        ("delta2", lambda data: zstd((1 << 64) - 1, data)),
        ("delta", lambda data: blosc((1 << 31) - 1, data)), ("delta", lambda data: blosc(16, data)),
        ("delta", lambda data: data[:2] + bytes([data[2] & 31]) + data[3:]),
        ("delta", lambda data: data[:8] + struct.pack("<I", (1 << 31) - 1) + data[12:]),
    ],
)  # fmt: skip
def test_a_state_whose_chunk_says_another_size(logs: Path, tmp_path: Path, name: str, change) -> None:
    path = Path(shutil.copytree(logs / name, tmp_path / "run"))
    row = change_last_chunk(path / "seg-0000000000.h5", "state/float32", change)
    with RunLog.open(path) as log:
        assert_same_state(log.state(0), state(0))  # only what the chunk is needed for is lost
        with pytest.raises(LogCorruptError, match="a chunk says that it has"):
            log.state(row)
        assert not log.verify().ok


def test_a_batch_whose_chunk_says_another_size(logs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(logs / "batches", tmp_path / "run"))
    change_last_chunk(path / "seg-0000000000.h5", "batch", lambda data: zstd(HUGE, data))
    with RunLog.open(path) as log:
        log.step(0).micro_batches[0].draws[0].batch()
        assert "a chunk says that it has" in log.verify().problem


def test_what_cannot_be_compressed_is_stored_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, 12_000, np.uint8).tobytes() for _ in range(STATES + 1)]

    def noisy(t: int):
        made = state(t)
        made.params["w"].view(-1).numpy().view(np.uint8)[:] = np.frombuffer(noise[t], np.uint8)
        return made

    for codec in ("delta", "small", "delta2"):
        write_run(tmp_path / codec, STATES, state=noisy, codec=codec)
        with RunLog.open(tmp_path / codec) as log:
            assert log.verify().ok
            for index in range(STATES + 1):
                assert_same_state(log.state(index), noisy(index))
