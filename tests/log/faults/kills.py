"""A writer is killed at any time, and the next goes on."""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import LogError, LogNotFoundError
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.log.writer import LogWriter
from tests.log.cases import make_header
from tests.log.faults.tally import PATIENCE, Tally, assert_right, finish, put


def kills(cycles: int, rng: np.random.Generator, place: Path) -> Tally:
    """A writer is killed at any time; the next goes on with the log from a random step near its end."""
    tally = Tally("SIGKILL at any time, then resume")
    path, steps = place / "run", 0
    for cycle in range(cycles):
        if steps > 150:
            shutil.rmtree(path)
            steps = 0
        start = int(rng.integers(max(0, steps - 20), steps + 1))
        flushed = max(start, killed_writer(path, start, steps, rng))
        tally.faults += 1
        try:
            if rng.random() < 0.2:
                with suppress(LogNotFoundError):
                    recover(path)
            steps = assert_right(path, flushed)
        except (AssertionError, LogError) as error:
            tally.lost.append(f"cycle {cycle}: {error}")
            shutil.rmtree(path, ignore_errors=True)
            steps = 0
    return tally


def killed_writer(path: Path, start: int, steps: int, rng: np.random.Generator) -> int:
    """Steps that a writer has flushed when it is killed."""
    seed, messages = int(rng.integers(2**32)), int(rng.integers(0, 8))
    spin = rng.random() * (0.02 if messages == 0 else 0.003)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        with suppress(BaseException):
            write_until_killed(path, start, steps, seed, write_end)
        os._exit(1)
    os.close(write_end)
    received = b""
    deadline = time.monotonic() + PATIENCE
    while len(received) < 8 * messages and select.select([read_end], [], [], max(0, deadline - time.monotonic()))[0]:
        data = os.read(read_end, 4096)
        if not data:
            break
        received += data
    until = time.monotonic() + spin
    while time.monotonic() < until:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(read_end, 4096):
        received += data
    os.close(read_end)
    return max(np.frombuffer(received[: len(received) // 8 * 8], "<i8").tolist(), default=0)


def write_until_killed(path: Path, start: int, steps: int, seed: int, told: int) -> None:
    rng = np.random.default_rng(seed)
    writer = LogWriter(
        path,
        header=make_header(),
        continue_at=start if steps else None,
        codec=str(rng.choice(["none", "delta", "small", "delta2", "auto"])),
        flush_every=int(rng.integers(1, 20)),
        segment_bytes=int(rng.choice([1, 1 << 20])),
    )
    for t in range(start, start + 300):
        put(writer, t)
        if rng.random() < 0.15:
            writer.flush()
            os.write(told, (t + 1).to_bytes(8, "little"))
        if t > start + 30 and rng.random() < 0.01:
            finish(writer, t + 1)
            return
