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
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lightning_sgdinf.errors import (
    LogCorruptError,
    LogError,
    LogExistsError,
    LogLockedError,
    LogNotFoundError,
    LogWriteError,
)
from lightning_sgdinf.foreign_files import open_regular
from lightning_sgdinf.log.file_objects import FileObject
from lightning_sgdinf.plain_text import printable

SEGMENT_FORMAT = "sgdinf-log/1"
END_FORMAT = "sgdinf-log-end/1"

_OURS = re.compile(r"LOCK|reserve|end\.h5|(seg|live)-[0-9]{10}\.h5|tmp-.*|damaged-.*")
_CONTENT = re.compile(r"end\.h5|(seg|live)-[0-9]{10}\.h5")
_RESERVE_BYTES = 8 << 20
_STATUS_BYTES = 4096
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

    @property
    def has_end(self) -> bool:
        """True if something has the name of the end mark."""
        return os.path.lexists(self.end)

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
        own = [p.lstat() for p in self.path.iterdir() if _CONTENT.fullmatch(p.name)]
        return sum(status.st_size for status in own if stat.S_ISREG(status.st_mode))

    def require(self) -> None:
        """Check that there is something to read.

        Raises:
            LogNotFoundError: There is not; says what is there instead.
        """
        if not self.path.exists():
            raise LogNotFoundError(
                f"{self.path}: no such directory, expected the log of a run. Was a TrajectoryRecorder with this path "
                "among the callbacks of the Trainer, and did the fit take a step?"
            )
        if not self.path.is_dir():
            raise LogNotFoundError(
                f"{self.path} is a file, expected a directory; give the log itself, not a part of it"
            )
        names = sorted(p.name for p in self.path.iterdir())
        if not any(_CONTENT.fullmatch(name) for name in names):
            raise LogNotFoundError(f"{self.path} holds no segments of a log, but {_listed(names) or 'nothing'}")
        if strangers := self.strangers():
            raise LogCorruptError(
                f"{self.path} holds {_listed(strangers)}, which no log has; move it elsewhere, or restore a copy"
            )

    def strangers(self) -> list[str]:
        """Return the names of what no log has: other names, links, pipes, devices, directories.

        Hidden files, which file systems and desktops leave everywhere, do not count: nobody opens them.
        """
        names = []
        for path in self.path.iterdir():
            with suppress(FileNotFoundError):  # a living writer gives its files other names
                ours = bool(_OURS.fullmatch(path.name)) and stat.S_ISREG(path.lstat().st_mode)
                if not ours and not path.name.startswith("."):
                    names.append(path.name)
        return sorted(names)

    def status(self) -> bytes:
        """Return what the present or the last writer has told of itself; empty if nothing."""
        try:
            descriptor = open_regular(self.path / "LOCK")
        except OSError:
            return b""
        try:
            content = os.pread(descriptor, _STATUS_BYTES, 0)
        finally:
            os.close(descriptor)
        return content.partition(b"\n")[2]

    def is_being_written(self) -> bool:
        """Tell if a living process holds the lock."""
        try:
            descriptor = open_regular(self.path / "LOCK")
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
        except BaseException as error:
            self.release()
            if isinstance(error, OSError) and not isinstance(error, LogError):
                raise LogWriteError(f"{self.path} cannot be prepared: {error}; see who may write there") from error
            raise

    def reserve(self, size_bytes: int) -> None:
        """Set space aside that a failing write can be given; grows only."""
        if size_bytes <= self._reserved:
            return
        self.free_reserve()  # whatever has that name is not written to
        descriptor = -1
        try:
            descriptor = open_regular(self.path / "reserve", os.O_CREAT | os.O_EXCL | os.O_RDWR)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size_bytes)
            else:
                for start in range(0, size_bytes, 1 << 20):
                    os.pwrite(descriptor, bytes(min(1 << 20, size_bytes - start)), start)
        except OSError as error:
            self.free_reserve()
            raise LogWriteError(f"{self.path}: no space for {size_bytes} bytes ({error}); free some space") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        self._reserved = size_bytes

    def free_reserve(self) -> None:
        """Give the reserved space back; if even that fails, whoever saves the rest and lets go of the lock goes on."""
        with suppress(OSError):
            (self.path / "reserve").unlink(missing_ok=True)
        self._reserved = 0

    def write_status(self, status: bytes) -> None:
        """Let everybody read how far this process is, below its name in the lock file."""
        lock = self._lock
        if lock is not None:
            line = _name_of_this_process() + b"\n" + status
            with suppress(OSError):  # who only wants to know how far the run is does not end the record of it
                os.pwrite(lock.fileno(), line, 0)
                os.ftruncate(lock.fileno(), len(line))

    @property
    def is_held(self) -> bool:
        """True until `release`."""
        return self._lock is not None

    def release(self) -> None:
        """Give the reserve back and let others write; harmless when done twice."""
        lock, self._lock = self._lock, None  # first of all: a process forked meanwhile closes what is here
        if lock is not None:
            self.free_reserve()
            with suppress(OSError):
                os.ftruncate(lock.fileno(), 0)
            lock.close()

    def forget(self) -> None:
        """In a forked child: the lock is the parent's."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def _refuse_strangers(self) -> None:
        if self.path.is_symlink():
            raise LogExistsError(
                f"{self.path} is a link to {os.path.realpath(self.path)}; write there, if that is what is wanted"
            )
        if strangers := self.strangers():
            raise LogExistsError(
                f"{self.path} holds {_listed(strangers)}, which no log has; move it elsewhere, or choose another path"
            )

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
            path.unlink()


def _listed(names: list[str]) -> str:
    """Return some names as text."""
    return ", ".join(repr(printable(name)) for name in names[:8]) + (", ..." if len(names) > 8 else "")


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


def _take_lock(path: Path) -> FileObject:
    """Return the open lock file; whoever drops it lets go of the lock."""
    lock = FileObject(open_regular(path, os.O_CREAT | os.O_RDWR))
    try:
        if os.fstat(lock.fileno()).st_nlink != 1:
            raise OSError(f"{path.name} is the same file as another one: remove it")
        _wait_for_lock(lock)
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), _name_of_this_process(), 0)
    except BlockingIOError:
        holder = os.pread(lock.fileno(), 200, 0).decode(errors="replace").partition("\n")[0] or "another process"
        lock.close()
        raise LogLockedError(
            f"{path.parent} is being written by {holder}; wait until it ends, or choose another path"
        ) from None
    except BaseException:
        lock.close()
        raise
    return lock


def _wait_for_lock(lock: FileObject) -> None:
    """Take the lock; who only looks whether somebody writes holds it for microseconds."""
    for _ in range(_LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_WAIT_SECONDS)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _name_of_this_process() -> bytes:
    return f"{os.getpid()}@{socket.gethostname()}".encode()
