"""A second writer, with every mode; and a directory that may not be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from lightning_sgdinf.errors import LogError, LogLockedError, LogWriteError
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.log.writer import LogWriter
from tests.log.cases import make_header, write_run
from tests.log.faults.prefixes import left_over
from tests.log.faults.tally import Tally, assert_right, finish, in_child, judged, put, state

NOBODY = 65534


def second_writers(count: int, rng: np.random.Generator, place: Path) -> Tally:
    """Another process opens what is being written, in every way it can."""
    del rng
    tally = Tally("a second writer")
    for number in range(count):
        for name, attempt in SECOND_WRITERS.items():
            path = place / f"run-{number}-{name}"
            other = waiting(lambda attempt=attempt, path=path: attempt(path))
            writer = write_run(path, 20, state=state, finish=False, segment_bytes=1)
            if os.getuid() == 0:
                os.chown(live(path), NOBODY, NOBODY)  # whom a second writer of the same user will be
            before = {p.name: p.stat().st_size for p in path.iterdir()}
            tally.faults += 1
            if status := other():
                tally.lost.append(f"{name}: not refused ({status})")
            if {p.name: p.stat().st_size for p in path.iterdir()} != before:
                tally.lost.append(f"{name}: something was changed")
            for t in range(20, 40):
                put(writer, t)
            finish(writer, 40)
            try:
                assert_right(path, 40)
                tally.noticed += 1
            except (AssertionError, LogError) as error:
                tally.lost.append(f"{name}: {error}")
    return tally


def waiting(action: Callable[[], None]) -> Callable[[], int]:
    """A child that knows nothing of what this process does from now on; it acts when it is called, and its status is
    returned."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(in_child(action) & 0xFF)
    os.close(read_end)

    def go() -> int:
        os.write(write_end, b"!")
        os.close(write_end)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return go


def refused(attempt: Callable[[Path], object], *errors: type[Exception]) -> Callable[[Path], None]:
    def action(path: Path) -> None:
        try:
            attempt(path)
        except errors:
            return
        raise AssertionError("it was not refused")

    return action


def live(path: Path) -> Path:
    return next(path.glob("live-*"))


def without_privileges(action: Callable[[Path], object]) -> Callable[[Path], object]:
    """As an ordinary user of the machine."""

    def reduced(path: Path) -> None:
        if os.getuid() == 0:
            for folder in (path, *path.parents):
                if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o1:
                    os.chmod(folder, folder.stat().st_mode | 0o5)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        action(path)

    return reduced


SECOND_WRITERS: dict[str, Callable[[Path], None]] = {
    "LogWriter": refused(lambda p: LogWriter(p, header=make_header()), LogLockedError),
    "LogWriter overwrite": refused(lambda p: LogWriter(p, header=make_header(), overwrite=True), LogLockedError),
    "LogWriter continue": refused(lambda p: LogWriter(p, header=make_header(), continue_at=3), LogLockedError),
    "recover": refused(recover, LogLockedError),
    "h5py r+": refused(lambda p: h5py.File(live(p), "r+"), OSError),
    "h5py r+ without locks": refused(lambda p: h5py.File(live(p), "r+", locking=False), OSError),
    "h5py a": refused(lambda p: h5py.File(live(p), "a"), OSError),
    "h5py x": refused(lambda p: h5py.File(live(p), "x"), OSError),
    "h5py w": refused(without_privileges(lambda p: h5py.File(live(p), "w")), OSError),
    "h5py w without locks": refused(without_privileges(lambda p: h5py.File(live(p), "w", locking=False)), OSError),
}


def read_only(count: int, rng: np.random.Generator, place: Path) -> Tally:
    """A log in a directory that may not be written; reading works, everything else is refused."""
    del rng
    tally = Tally("read-only directory")
    for number in range(count):
        path = place / f"run-{number}"
        left_over(path)
        for name, attempt in READ_ONLY.items():
            before = {p.name: p.read_bytes() for p in path.iterdir()}
            os.chmod(path, 0o555)
            judged(tally, name, lambda attempt=attempt, path=path: without_privileges(attempt)(path))
            os.chmod(path, 0o755)
            if {p.name: p.read_bytes() for p in path.iterdir()} != before:
                tally.lost.append(f"{name}: something was changed")
    return tally


READ_ONLY: dict[str, Callable[[Path], object]] = {
    "read": lambda p: assert_right(p, 30),
    "record": refused(lambda p: LogWriter(p / "new", header=make_header()), LogWriteError),
    "overwrite": refused(lambda p: LogWriter(p, header=make_header(), overwrite=True), LogWriteError),
    "resume": refused(lambda p: LogWriter(p, header=make_header(), continue_at=3), LogWriteError),
    "recover": refused(recover, LogWriteError),
}
