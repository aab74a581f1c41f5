"""A reader written from docs/format/log-v1.md alone: h5py, numpy, zlib, and nothing of the package."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  the filter of codec delta
import numpy as np
import pytest

from lightning_sgdinf.log import RunLog
from lightning_sgdinf.state import ModelState
from tests.log.cases import make_header, make_state, make_step, write_run

GOLDEN = Path(__file__).parent / "golden" / "v1"

WORDS = {
    "float64": ("<f8", 1),
    "float32": ("<f4", 1),
    "float16": ("<f2", 1),
    "bfloat16": ("<u2", 1),
    "int64": ("<i8", 1),
    "int32": ("<i4", 1),
    "int16": ("<i2", 1),
    "int8": ("<i1", 1),
    "uint8": ("<u1", 1),
    "bool": ("<u1", 1),
    "complex64": ("<f4", 2),
    "complex128": ("<f8", 2),
}


def document(file: h5py.File, name: str) -> Any:
    data = file[name][()].tobytes()
    assert zlib.crc32(data) == file[name].attrs["crc32"]
    return json.loads(data)


def ragged(file: h5py.File, name: str, row: int) -> np.ndarray:
    ends = file[f"{name}_end"][()]
    return file[name][(ends[row - 1] if row else 0) : ends[row]]


def tensors(layout: list, lanes: dict[str, bytes]) -> dict[tuple[str, str, str], bytes]:
    """Bytes of each tensor, by part, name and key."""
    offsets = dict.fromkeys(lanes, 0)
    found = {}
    for part, name, key, shape, dtype in layout:
        word, per_element = WORDS[dtype]
        size = int(np.prod(shape, dtype=int)) * per_element * np.dtype(word).itemsize
        start = offsets.get(dtype, 0)
        found[part, name, key] = lanes.get(dtype, b"")[start : start + size]
        offsets[dtype] = start + size
    return found


def checksum(layout: list, values: dict[tuple[str, str, str], bytes]) -> int:
    crc = zlib.crc32(json.dumps(sorted(layout), separators=(",", ":"), ensure_ascii=True).encode())
    for place in sorted(values):
        crc = zlib.crc32(values[place], crc)
    return crc


def unzigzag(row: np.ndarray) -> np.ndarray:
    return (row >> 1) ^ (~(row & 1) + 1).astype(row.dtype)


def states_of(file: h5py.File) -> list[dict[str, bytes]]:
    """Lanes of each stored state of a segment; from the first anchor, and compared with the way from the last."""
    count = len(file["state_index"])
    states: list[dict[str, bytes]] = [{} for _ in range(count)]
    for dtype in file["state"]:
        rows = file[f"state/{dtype}"][()]
        if file.attrs["codec"] == "none":
            for place in range(count):
                states[place][dtype] = rows[place].tobytes()
        elif count:
            first, last = file[f"anchor/{dtype}"][()].view(rows.dtype)
            for place in range(count):
                states[place][dtype] = first.tobytes()
                if place < count - 1:
                    first = first - unzigzag(rows[place])
            for place in range(count - 1, -1, -1):
                assert states[place][dtype] == last.tobytes()
                if place:
                    last = last + unzigzag(rows[place - 1])
    return states


def step_crc(file: h5py.File, row: int) -> int:
    t = int(file.attrs["first_step"]) + row
    parts = [
        np.array([t], "<i8").tobytes(),
        bytes([t in file["state_index"][()]]),
        ragged(file, "ids", row).tobytes(),
        file["lr"][row].tobytes(),
        ragged(file, "step", row).tobytes(),
    ]
    blobs = [zlib.crc32(ragged(file, "blob", place).tobytes()) for place in ragged(file, "step_blobs", row)]
    return zlib.crc32(b"".join([*parts, np.array(blobs, "<u4").tobytes(), file["state_crc"][row].tobytes()]))


class PlainLog:
    """All of a finished log."""

    def __init__(self, path: Path) -> None:
        self.states: dict[int, dict[tuple[str, str, str], bytes]] = {}
        self.state_crcs: dict[int, int] = {}
        self.steps: list[dict[str, Any]] = []
        crcs = b""
        with h5py.File(path / "end.h5") as end:
            assert end.attrs["format"] == "sgdinf-log-end/1"
            self.header, summary = document(end, "header"), document(end, "summary")
            for entry in summary["segments"]:
                with h5py.File(path / f"seg-{entry['first']:010d}.h5") as file:
                    crcs += self._read(file, entry)
            layout = document(end, "state/layout")
            lanes = {d: end[f"state/{d}"][()].tobytes() for d in end["state"] if d != "layout"}
            self.states[summary["steps"]] = tensors(layout, lanes)
            last = self.state_crcs[summary["steps"]] = int(end["state"].attrs["crc32"])
            assert checksum(layout, self.states[summary["steps"]]) == last
            self.average = {n: end["average/float32"][()].tolist() for _, n, *_ in document(end, "average/layout")}
        assert len(self.steps) == summary["steps"]
        content = (
            summary["run_id"].encode() + summary["steps"].to_bytes(8, "little") + crcs + last.to_bytes(4, "little")
        )
        self.digest = hashlib.sha256(content).hexdigest()

    def _read(self, file: h5py.File, entry: dict[str, int]) -> bytes:
        assert file.attrs["format"] == "sgdinf-log/1"
        assert file.attrs["run_id"] == self.header["run_id"]
        assert document(file, "header") == self.header
        assert file.attrs["first_step"] == entry["first"] == len(self.steps)
        layout, crc = document(file, "layout"), file["crc"][()]
        assert zlib.crc32(file["state_index"][()].tobytes(), zlib.crc32(crc.tobytes())) == entry["checksum"]
        for row in range(entry["steps"]):
            assert step_crc(file, row) == crc[row]
            self.state_crcs[entry["first"] + row] = int(file["state_crc"][row])
            blobs = [ragged(file, "blob", place).tobytes() for place in ragged(file, "step_blobs", row)]
            content = json.loads(ragged(file, "step", row).tobytes())
            self.steps.append(
                {"ids": ragged(file, "ids", row).tolist(), "blobs": blobs, "frame": json.loads(blobs[0]), **content}
            )
        for index, lanes in zip(file["state_index"][()], states_of(file), strict=True):
            self.states[int(index)] = tensors(layout, lanes)
            assert checksum(layout, self.states[int(index)]) == self.state_crcs[int(index)]
        return crc.tobytes()


def raw(state: ModelState) -> dict[tuple[str, str, str], bytes]:
    """Bytes of each tensor of a state."""
    return {
        (part, name, key): np.array(value.contiguous().reshape(-1).untyped_storage().tolist(), np.uint8).tobytes()
        for part, name, key, value in state.map(lambda v: v.clone()).items()
    }


def assert_follows_specification(path: Path, steps: int, state: Callable[[int], ModelState]) -> None:
    plain = PlainLog(path)
    with RunLog.open(path) as log:
        assert plain.digest == log.digest
        assert sorted(plain.states) == log.state_indices.tolist()
        for index in range(steps + 1):
            assert plain.state_crcs[index] == log.state_checksum(index)
        assert plain.average == {"w": [0.5, 0.5]}
        for index in plain.states:
            assert plain.states[index] == raw(log.state(index)) == raw(state(index))
        for plain_step, found in zip(plain.steps, log.steps(0, steps), strict=True):
            expected = make_step(found.index)
            assert plain_step["ids"] == expected.example_ids.tolist()
            assert plain_step["epoch"] == found.epoch == expected.epoch
            assert plain_step["frame"]["accumulation"] == expected.accumulation
            assert plain_step["frame"]["groups"][0]["params"] == list(expected.groups[0].params)
            rate = plain_step["options"][0]["lr"]
            assert (float(rate["$float"]) if isinstance(rate, dict) else rate) == pytest.approx(
                expected.groups[0].options["lr"], abs=0, rel=0, nan_ok=True
            )
            draw = plain_step["micro_batches"][0]["draws"][0]
            assert draw["n"] == len(expected.micro_batches[0].draws[0].example_ids)
            random = {name: plain_step["blobs"][place] for name, place in draw["random"].items()}
            assert random == expected.micro_batches[0].draws[0].random


@pytest.mark.parametrize("codec", ["none", "delta"])
def test_an_independent_reader_reads_what_is_written(tmp_path: Path, codec: str) -> None:
    def state(t: int) -> ModelState:
        return make_state(t, momentum=t > 2, size=40 if t < 20 else 4000)

    write_run(tmp_path / "run", 25, state=state, keep=lambda t: t % 2 == 0, codec=codec, segment_bytes=1)
    assert_follows_specification(tmp_path / "run", 25, state)


def test_the_golden_log_of_version_1_stays_readable() -> None:
    assert sum(p.stat().st_size for p in GOLDEN.iterdir()) < 100_000
    assert_follows_specification(GOLDEN, 6, make_state)
    with RunLog.open(GOLDEN) as log:
        assert log.digest == "d32a39aec2f9201d25bfe9bfe0490e4cafbd06ae0aaa12f9429635c43962e8cf"
        assert log.header.model == make_header().model
        assert log.verify().ok


def write_golden() -> None:
    """How the golden log was made, once, by the first release."""
    write_run(GOLDEN, 6, keep=lambda t: t % 2 == 0, codec="delta")
