"""The files of a log, and who may write them.

``<run>.tlog/`` holds ``LOCK``, which also tells how far the writer is; sealed segments ``seg-<first step>.h5``; at most
one ``live-<first step>.h5``, which is being written or was when its writer died; ``reserve``, space to give back when
the disk is full; and, once the run has ended, ``end.h5``. ``tmp-*`` is unfinished business, ``damaged-*`` what recovery
could not read and set aside.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lightning_sgdinf.errors import LogExistsError, LogLockedError, LogNotFoundError, LogWriteError

SEGMENT_FORMAT = "sgdinf-log/1"
END_FORMAT = "sgdinf-log-end/1"

_OURS = re.compile(r"LOCK|reserve|end\.h5|(seg|live)-\d{10}\.h5|tmp-.*|damaged-.*")
_CONTENT = re.compile(r"end\.h5|(seg|live)-\d{10}\.h5")
_RESERVE_BYTES = 8 << 20
_LOCK_TRIES, _LOCK_WAIT_SECONDS = 3, 0.005


class LogDirectory:
    """Paths in one log.

    Args:
        path: The directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def end(self) -> Path:
        """The end mark."""
        return self.path / "end.h5"

    def sealed(self, first: int) -> Path:
        """Return the path of the sealed segment that begins with step ``first``."""
        return self.path / f"seg-{first:010d}.h5"

    def live(self, first: int) -> Path:
        """Return the path of the segment in writing that begins with step ``first``."""
        return self.path / f"live-{first:010d}.h5"

    def segments(self, kind: str) -> dict[int, Path]:
        """Return first step and path of the ``"seg"`` or ``"live"`` segments, in order."""
        paths = {int(p.stem.split("-")[1]): p for p in self.path.glob(f"{kind}-*.h5") if _CONTENT.fullmatch(p.name)}
        return dict(sorted(paths.items()))

    def size_bytes(self) -> int:
        """Return the bytes of all files that hold data of the run."""
        return sum(p.stat().st_size for p in self.path.iterdir() if _CONTENT.fullmatch(p.name) and p.is_file())

    def require(self) -> None:
        """Check that there is something to read.

        Raises:
            LogNotFoundError: There is not; says what is there instead.
        """
        if not self.path.exists():
            raise LogNotFoundError(f"{self.path}: no such directory, expected the log of a run")
        if not self.path.is_dir():
            raise LogNotFoundError(
                f"{self.path} is a file, expected a directory; give the log itself, not a part of it"
            )
        names = sorted(p.name for p in self.path.iterdir())
        if not any(_CONTENT.fullmatch(name) for name in names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
            raise LogNotFoundError(f"{self.path} holds no segments of a log, but {shown}")

    def status(self) -> bytes:
        """Return what the present or the last writer has told of itself; empty if nothing."""
        try:
            content = (self.path / "LOCK").read_bytes()
        except OSError:
            return b""
        return content.partition(b"\n")[2]

    def is_being_written(self) -> bool:
        """Tell if a living process holds the lock."""
        try:
            descriptor = os.open(self.path / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class WritableDirectory(LogDirectory):
    """A log directory whose lock this process holds.

    Args:
        path: Made if missing, unless a log must be there.
        present: Refuse to go on if a log is there, delete it, or keep it; then there must be one.

    Raises:
        LogExistsError: The path is taken.
        LogNotFoundError: There is nothing to keep.
        LogLockedError: Another writer is at it.
        LogWriteError: The directory, its lock or its reserve cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, present: Literal["refuse", "delete", "keep"]) -> None:
        super().__init__(path)
        if present == "keep":
            self.require()
        if self.path.exists() and not self.path.is_dir():
            raise LogExistsError(f"{self.path} is a file, expected a free path for a directory; choose another")
        if self.path.exists():
            self._refuse_strangers()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / "LOCK")
        except LogLockedError:
            raise
        except OSError as error:
            raise LogWriteError(
                f"{self.path} cannot be made or locked: {error}; choose a local, writable disk"
            ) from error
        try:
            self._clear(present)
            self._reserved = 0
            self.reserve(_RESERVE_BYTES)
        except BaseException:
            self.release()
            raise

    def reserve(self, size_bytes: int) -> None:
        """Set space aside that a failing write can be given; grows only."""
        if size_bytes <= self._reserved:
            return
        descriptor = os.open(self.path / "reserve", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size_bytes)
            else:
                for start in range(0, size_bytes, 1 << 20):
                    os.pwrite(descriptor, bytes(min(1 << 20, size_bytes - start)), start)
        except OSError as error:
            self.free_reserve()
            raise LogWriteError(f"{self.path}: no space for {size_bytes} bytes ({error}); free some space") from error
        finally:
            os.close(descriptor)
        self._reserved = size_bytes

    def free_reserve(self) -> None:
        """Give the reserved space back; if even that fails, whoever saves the rest and lets go of the lock goes on."""
        with suppress(OSError):
            (self.path / "reserve").unlink(missing_ok=True)
        self._reserved = 0

    def write_status(self, status: bytes) -> None:
        """Let everybody read how far this process is, below its name in the lock file."""
        if self._lock is not None:
            line = _name_of_this_process() + b"\n" + status
            os.pwrite(self._lock, line, 0)
            os.ftruncate(self._lock, len(line))

    def release(self) -> None:
        """Let others write; harmless when done twice."""
        lock, self._lock = self._lock, None  # first of all: a process forked meanwhile closes what is here
        if lock is not None:
            os.ftruncate(lock, 0)
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def forget(self) -> None:
        """In a forked child: the lock is the parent's."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _refuse_strangers(self) -> None:
        strangers = sorted(p.name for p in self.path.iterdir() if not _OURS.fullmatch(p.name))
        if strangers:
            raise LogExistsError(f"{self.path} holds {', '.join(strangers[:5])}, which no log has; choose another path")

    def _clear(self, present: str) -> None:
        content = sorted((p for p in self.path.iterdir() if _CONTENT.fullmatch(p.name)), reverse=True)
        if content and present == "refuse":
            raise LogExistsError(
                f"{self.path} holds the log of a run; choose another path, pass overwrite=True, or continue it by "
                "resuming from a checkpoint: fit(..., ckpt_path=...)"
            )
        for path in content if present == "delete" else ():
            path.unlink()  # newest segments first, so that no hole is left if this is interrupted
        for path in (*self.path.glob("tmp-*"), *(self.path.glob("damaged-*") if present == "delete" else ())):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def sync_file(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its name, durably."""
    sync_file(temporary)
    temporary.rename(final)
    sync_file(final.parent)


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        for _ in range(_LOCK_TRIES - 1):  # who only looks whether somebody writes holds it for microseconds
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_LOCK_WAIT_SECONDS)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").partition("\n")[0] or "another process"
        os.close(descriptor)
        raise LogLockedError(
            f"{path.parent} is being written by {holder}; wait until it ends, or choose another path"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _name_of_this_process(), 0)
    return descriptor


def _name_of_this_process() -> bytes:
    return f"{os.getpid()}@{socket.gethostname()}".encode()
