"""A file system that is full after any number of bytes of a seal: of the last flush of a segment, its end, its name."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log.segment_writer import SegmentWriter
from lightning_sgdinf.log.writer import LogWriter
from tests.log.cases import make_header
from tests.log.faults.tally import Tally, assert_right, finish, judged, put

STEPS = 17


def filling_seals(share: float, rng: np.random.Generator, place: Path) -> Tally:
    """Files may grow by so many bytes once a seal has begun, for every number of bytes or a share of them."""
    tally = Tally("the disk is full at any byte of a seal")
    for codec in ("delta", "none", "small", "delta2"):
        sizes = place / f"sizes-{codec}"
        judged(Tally("probe"), "probe", lambda: measure(place / "probe", codec, sizes))  # noqa: B023
        before, after = map(int, sizes.read_text().split())
        shutil.rmtree(place / "probe")
        for size in range(before - 1, after + 1):
            if rng.random() < share:
                path = place / "run"
                shutil.rmtree(path, ignore_errors=True)
                judged(tally, f"{codec}, {size} bytes", lambda s=size, c=codec, p=path: fill(p, c, s))
    return tally


def record(path: Path, codec: str, at_seal: object) -> int:
    """Record until after the first seal; the number of steps that were flushed."""
    original, flushed = SegmentWriter.seal, 0

    def seal(writer: SegmentWriter, final: Path) -> object:
        at_seal(writer)  # type: ignore[operator]
        return original(writer, final)

    with patch.object(SegmentWriter, "seal", seal):
        writer = LogWriter(path, header=make_header(), codec=codec, segment_bytes=1, flush_every=4)
        try:
            for t in range(STEPS + 1):
                put(writer, t)
                if t % 4 == 3:
                    writer.flush()
                    flushed = t + 1
            finish(writer, STEPS + 1)
            flushed = STEPS + 1
        except LogWriteError:
            pass
    return flushed


def measure(path: Path, codec: str, sizes: Path) -> None:
    """Tell how large the second segment is when its seal begins, and when it is sealed."""
    seen: list[int] = []
    record(path, codec, lambda writer: seen.append(os.path.getsize(writer.path)))
    sizes.write_text(f"{seen[1]} {os.path.getsize(path / 'seg-0000000001.h5')}")


def fill(path: Path, codec: str, size: int) -> None:
    """From the second seal on no file may be larger than that."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    seals = [0]

    def limit(writer: SegmentWriter) -> None:
        seals[0] += 1
        if seals[0] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))

    flushed = record(path, codec, limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    steps = assert_right(path, flushed)
    writer = LogWriter(path, header=make_header(), continue_at=steps)
    for t in range(steps, steps + 3):
        put(writer, t)
    finish(writer, steps + 3)
    assert assert_right(path, steps + 3) == steps + 3
