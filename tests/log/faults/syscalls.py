"""The n-th system call that a writer makes on its files fails, for every n: without strace, by a tracer of our own.

A tracer lets a call that is to fail do nothing, and puts the error where its result would be. Linux on x86_64 only.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import platform
import shutil
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import LogError, LogWriteError
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.log.writer import LogWriter
from tests.log.cases import make_header
from tests.log.faults.tally import PATIENCE, Tally, assert_right, finish, in_child, put
from tests.log.faults.traced import (
    ENTRY,
    EXIT,
    EXIT_KILL,
    GET_SYSCALL_INFO,
    GOOD_STOPS,
    SETOPTIONS,
    SYSCALL,
    TRACEME,
    NotPermitted,
)

POKEUSER, TRACE_CLONE, WALL = 6, 0x8, 0x40000000
RESULT, NUMBER = 10 * 8, 15 * 8  # offsets of registers
BY_DESCRIPTOR = {0: "read", 1: "write", 17: "pread", 18: "pwrite", 295: "preadv", 74: "fsync", 75: "fdatasync",
                 77: "ftruncate", 285: "fallocate", 73: "flock", 40: "sendfile"}  # fmt: skip
BY_PATH = {2: 0, 257: 1, 82: 0, 264: 1, 316: 1, 87: 0, 263: 1, 83: 0, 258: 1, 90: 0, 268: 1}
"""Number to the place of the argument: open, openat, rename ..., unlink ..., mkdir ..., chmod, fchmodat."""

_CALLS = 400  # of a run, about


@dataclass(frozen=True)
class Failure:
    """The calls that fail.

    Attributes:
        first: The first of them, counted from 0.
        error: Number of the error.
        once: Only this one.
    """

    first: int
    error: int
    once: bool

    def hits(self, number: int) -> bool:
        return number == self.first if self.once else number >= self.first


def run(action: Callable[[], None], directory: Path, failure: Failure | None) -> tuple[int, int]:
    """Do an action in a child; its exit status (minus a signal), and the number of calls on files of a directory."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NotPermitted("the tracer changes the results of calls on x86_64 only")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if libc.ptrace(TRACEME, 0, None, None) < 0:
                os._exit(77)
            os.kill(os.getpid(), signal.SIGSTOP)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            if code:
                os._exit(code)
            atexit._run_exitfuncs()
            ctypes.CDLL(None).exit(0)
    return _follow(libc, child, str(directory.resolve()), failure)


def _follow(libc: ctypes.CDLL, child: int, directory: str, failure: Failure | None) -> tuple[int, int]:
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        raise NotPermitted("a child may not be traced here")
    if libc.ptrace(SETOPTIONS, child, None, GOOD_STOPS | EXIT_KILL | TRACE_CLONE) < 0:
        raise NotPermitted(os.strerror(ctypes.get_errno()))
    libc.ptrace(SYSCALL, child, None, 0)
    info, count, failing = ctypes.create_string_buffer(88), 0, set()
    while True:
        thread, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == child:
                return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), count
            continue
        deliver = 0
        if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
            if libc.ptrace(GET_SYSCALL_INFO, thread, len(info), ctypes.addressof(info)) > 0:
                if info.raw[0] == ENTRY:
                    number, *arguments = struct.unpack_from("<7Q", info.raw, 24)
                    if _concerns(child, directory, number, arguments):
                        if failure is not None and failure.hits(count):
                            libc.ptrace(POKEUSER, thread, NUMBER, ctypes.c_void_p(-1))
                            failing.add(thread)
                        count += 1
                elif info.raw[0] == EXIT and thread in failing:
                    assert failure is not None
                    failing.discard(thread)
                    libc.ptrace(POKEUSER, thread, RESULT, ctypes.c_void_p(-failure.error))
        elif os.WSTOPSIG(status) not in (signal.SIGTRAP, signal.SIGSTOP):
            deliver = os.WSTOPSIG(status)
        libc.ptrace(SYSCALL, thread, None, deliver)


def _concerns(child: int, directory: str, number: int, arguments: list[int]) -> bool:
    if number in BY_DESCRIPTOR:
        try:
            return os.readlink(f"/proc/{child}/fd/{arguments[0] & 0xFFFFFFFF}").startswith(directory)
        except OSError:
            return False
    if number not in BY_PATH:
        return False
    with open(f"/proc/{child}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[BY_PATH[number]])
        return memory.read(len(directory)).startswith(os.fsencode(directory))


def failing_system_calls(share: float, rng: np.random.Generator, place: Path) -> Tally:
    """Every call of a writer fails, once or from then on; of all of them a share."""
    tally = Tally("the n-th system call fails")
    try:
        for codec, when_full, error, once in _kinds():
            if not (picked := int(rng.binomial(_CALLS, share))):
                continue
            path = place / "probe"
            _, calls = run(lambda: write(path, codec, when_full, place / "told"), path, None)  # noqa: B023
            shutil.rmtree(path)
            for first in sorted(rng.choice(calls, min(picked, calls), replace=False).tolist()):
                judge(tally, Failure(first, error, once), codec, when_full, place / f"run-{len(tally.lost)}")
    except NotPermitted as error:
        tally.remark = str(error)
    return tally


def _kinds() -> Iterator[tuple[str, str, int, bool]]:
    for codec in ("delta", "none", "small", "delta2"):
        for when_full in ("raise", "stop_logging"):
            for error in (errno.ENOSPC, errno.EIO):
                for once in (True, False):
                    yield codec, when_full, error, once


def write(path: Path, codec: str, when_full: str, told: Path) -> None:
    """Record 40 steps, and tell what has been flushed."""
    descriptor = os.open(told, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        writer = LogWriter(
            path, header=make_header(), codec=codec, segment_bytes=1, flush_every=4, when_full=when_full,  # type: ignore[arg-type]
        )  # fmt: skip
        for t in range(40):
            put(writer, t)
            if t % 6 == 5:
                writer.flush()
                if not writer.stopped:
                    os.write(descriptor, bytes([t + 1]))
        finish(writer, 40)
        if not writer.stopped:
            os.write(descriptor, bytes([40, 255]))
    except LogWriteError:
        os.write(descriptor, bytes([254]))


def judge(tally: Tally, failure: Failure, codec: str, when_full: str, path: Path) -> None:
    """Do it, and look what is left: what was told is there, the log can be recovered, and goes on."""
    what = f"call {failure.first}{' only' if failure.once else ' and on'}, {errno.errorcode[failure.error]}, {codec}"
    told = path.with_name(f"told-{path.name}")
    shutil.rmtree(path, ignore_errors=True)
    tally.faults += 1
    with quiet():
        status, _ = run(lambda: write(path, codec, when_full, told), path, failure)
    flushed = [n for n in told.read_bytes() if n <= 40] or [0]
    try:
        assert status == 0, f"the child ended with {status}"
        assert when_full == "raise" or 254 not in told.read_bytes() or flushed == [0], "training was ended"
        if path.exists():
            steps = assert_right(path, max(flushed))
            if steps:
                recover(path)
                assert assert_right(path, steps) == steps, "recovery has lost steps"
            assert not (status := in_child(lambda: go_on(path, steps))), f"going on ended with {status}"
        shutil.rmtree(path, ignore_errors=True)
    except (AssertionError, LogError) as error:
        tally.lost.append(f"{what}, {when_full}: {error}")


def go_on(path: Path, steps: int) -> None:
    """Continue a log with a few more steps."""
    if not steps:
        shutil.rmtree(path)
    writer = LogWriter(path, header=make_header(), continue_at=steps or None)
    for t in range(steps, steps + 5):
        put(writer, t)
    finish(writer, steps + 5)
    assert assert_right(path, steps + 5) == steps + 5


@contextmanager
def quiet() -> Iterator[None]:
    """Let HDF5 and warnings in children say nothing."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
