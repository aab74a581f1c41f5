"""No room on the disk, calls that fail, and a writing thread that dies."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np

from lightning_sgdinf.errors import LogWriteError
from lightning_sgdinf.log.hdf5 import Growing
from lightning_sgdinf.log.store import LogStore
from lightning_sgdinf.log.writer import LogWriter
from tests.log.cases import make_header
from tests.log.faults.tally import Tally, assert_right, finish, in_child, judged, put


def full_disks(count: int, rng: np.random.Generator, place: Path) -> list[Tally]:
    """Files may not grow beyond a random size; a file system that is too small."""
    limited, small = Tally("files may not grow (RLIMIT_FSIZE)"), Tally("full file system")
    for number in range(count):
        limit, seed = int(rng.integers(10_000, 120_000)), int(rng.integers(2**32))

        def action(number: int = number, limit: int = limit, seed: int = seed) -> None:
            unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
            path = place / f"limited-{number}"
            fill(
                path, np.random.default_rng(seed),
                before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1])),
                after=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited),
            )  # fmt: skip

        judged(limited, f"limit {limit}, seed {seed}", action)
    if in_child(lambda: mount(place / "probe", 1 << 20)):
        small.remark = "a small file system cannot be mounted here"
        return [limited, small]
    for number in range(count):
        size, seed = int(rng.integers(9 << 20, 12 << 20)), int(rng.integers(2**32))

        def action(number: int = number, size: int = size, seed: int = seed) -> None:
            disk = place / f"mount-{number}"
            mount(disk, size)
            ballast = disk / "ballast"
            fill(
                disk / "run", np.random.default_rng(seed),
                before=lambda: occupy(ballast, seed % 100_000), after=lambda: ballast.unlink(missing_ok=True),
            )  # fmt: skip

        judged(small, f"{size} bytes, seed {seed}", action)
    return [limited, small]


def fill(path: Path, rng: np.random.Generator, *, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Write until there is no room; then what was flushed is there, and with room again the run goes on."""
    flushed, failed = 0, False
    writer = LogWriter(path, header=make_header(), codec=str(rng.choice(["none", "delta"])))
    before()
    try:
        for t in range(400):
            put(writer, t)
            if rng.random() < 0.2:
                writer.flush()
                flushed = t + 1
        finish(writer, 400)
    except LogWriteError:
        failed = True
    after()
    assert failed, "the test is degenerate: there was room"
    steps = assert_right(path, flushed)
    if not steps:
        shutil.rmtree(path)
    writer = LogWriter(path, header=make_header(), continue_at=steps or None)
    for t in range(steps, steps + 5):
        put(writer, t)
    finish(writer, steps + 5)
    assert assert_right(path, steps + 5) == steps + 5


def occupy(ballast: Path, leave: int) -> None:
    """Take all room of a file system but a little."""
    free = shutil.disk_usage(ballast.parent).free
    with suppress(OSError), ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))


def mount(path: Path, size: int) -> None:
    """A small file system that this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14
    path.mkdir()
    if libc.unshare(new_mounts if os.getuid() == 0 else new_mounts | new_users):
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(b"none", b"/", None, recursive | private, None)
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, b"size=%d" % size):
        raise OSError(ctypes.get_errno(), "mount")


CALLS = {
    "Growing.append": (Growing, "append"),
    "File.flush": (h5py.File, "flush"),
    "File.close": (h5py.File, "close"),
    "fsync": (os, "fsync"),
    "posix_fallocate": (os, "posix_fallocate"),
    "rename": (Path, "rename"),
    "unlink": (Path, "unlink"),
    "pwrite": (os, "pwrite"),
}


def failing_calls(share: float, rng: np.random.Generator, place: Path) -> Tally:
    """The n-th call of a function that touches the disk fails, once or from then on."""
    tally = Tally("the n-th call fails")
    for name, (owner, attribute) in CALLS.items():
        for nth in range(40):
            for once in (True, False):
                if rng.random() > share:
                    continue
                path = place / f"{name}-{nth}-{once}"

                def action(
                    path: Path = path, owner: object = owner, attribute: str = attribute, nth: int = nth,
                    once: bool = once,
                ) -> None:  # fmt: skip
                    survive(path, owner, attribute, nth, once=once)

                judged(tally, f"{name}, call {nth}{' only' if once else ' and on'}", action)
                shutil.rmtree(path, ignore_errors=True)
    return tally


def survive(path: Path, owner: object, attribute: str, nth: int, *, once: bool) -> None:
    """Write with a function that fails; whatever it says, what was flushed is there, and the run can go on."""
    original, seen, flushed = getattr(owner, attribute), [0], 0

    def failing(*args: object, **kwargs: object) -> object:
        seen[0] += 1
        if seen[0] == nth + 1 or (seen[0] > nth and not once):
            raise OSError(5, "made to fail")
        return original(*args, **kwargs)

    writer = None
    with patch.object(owner, attribute, failing):
        try:
            writer = LogWriter(path, header=make_header(), segment_bytes=1, flush_every=4)
            for t in range(40):
                put(writer, t)
                if t % 6 == 5:
                    writer.flush()
                    flushed = t + 1
            finish(writer, 40)
            flushed = 40
        except (LogWriteError, OSError):
            pass
        if writer is not None:
            writer._queue.close()
            writer._queue.wait_for_end()
    steps = assert_right(path, flushed) if path.exists() else 0
    if not steps:
        shutil.rmtree(path, ignore_errors=True)
    writer = LogWriter(path, header=make_header(), continue_at=steps or None)
    for t in range(steps, steps + 5):
        put(writer, t)
    finish(writer, steps + 5)
    assert assert_right(path, steps + 5) == steps + 5


def dying_threads(count: int, rng: np.random.Generator, place: Path) -> Tally:
    """The thread that writes ends in the middle of its work."""
    tally = Tally("the writing thread dies")
    for number in range(count):
        after, error = int(rng.integers(0, 40)), [SystemExit, KeyboardInterrupt, MemoryError, RuntimeError][number % 4]

        def action(number: int = number, after: int = after, error: type[BaseException] = error) -> None:
            path, flushed = place / f"run-{number}", 0
            original, seen = LogStore.add, [0]

            def add_or_die(*args: object, **kwargs: object) -> object:
                seen[0] += 1
                if seen[0] > after:
                    raise error("made to die")
                return original(*args, **kwargs)  # type: ignore[arg-type]

            with patch.object(LogStore, "add", add_or_die):
                writer = LogWriter(path, header=make_header(), segment_bytes=1)
                try:
                    for t in range(60):
                        put(writer, t)
                        if t % 5 == 4:
                            writer.flush()
                            flushed = t + 1
                    raise AssertionError("nobody was told")
                except LogWriteError:
                    pass
            assert_right(path, flushed)

        judged(tally, f"{error.__name__} after {after} steps", action)
    return tally
