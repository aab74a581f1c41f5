"""What a process does to the files of a directory, call by call: a tracer like strace, for Linux on 64-bit machines.

The traced function runs in a forked child, in its only thread. A call is seen when it begins, and counts if it ends
well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRACEME, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
GOOD_STOPS, EXIT_KILL = 0x1, 0x100000
ENTRY, EXIT = 1, 2
AT_FDCWD = -100

CALLS = {
    "x86_64": {
        1: "write", 18: "pwrite", 77: "ftruncate", 76: "truncate", 2: "open", 257: "openat", 85: "creat", 82: "rename",
        264: "renameat", 316: "renameat2", 87: "unlink", 263: "unlinkat", 83: "mkdir", 258: "mkdirat", 84: "rmdir",
        74: "fsync", 75: "fdatasync", 285: "fallocate", 20: "writev", 296: "pwritev", 40: "sendfile",
        326: "copy_file_range", 26: "msync", 9: "mmap",
    },
    "aarch64": {
        64: "write", 68: "pwrite", 46: "ftruncate", 45: "truncate", 56: "openat", 38: "renameat", 276: "renameat2",
        35: "unlinkat", 34: "mkdirat", 82: "fsync", 83: "fdatasync", 47: "fallocate", 66: "writev", 70: "pwritev",
        71: "sendfile", 285: "copy_file_range", 227: "msync", 222: "mmap",
    },
}  # fmt: skip
"""Number to name of the calls that change files."""

O_CREAT, O_TRUNC, MAP_SHARED, PROT_WRITE = os.O_CREAT, os.O_TRUNC, 1, 2


@dataclass(frozen=True, slots=True)
class Call:
    """One change.

    Attributes:
        kind: ``create``, ``write``, ``size``, ``rename``, ``remove``, ``directory``, ``sync`` or ``told``.
        path: Relative to the directory; empty for ``told``.
        data: What was written, or told.
        place: Where; for ``size`` the new size.
        target: New name.
    """

    kind: str
    path: str = ""
    data: bytes = b""
    place: int = 0
    target: str = ""


class NotPermitted(Exception):
    """The machine does not let a process trace its child, or is of another kind."""


class _Traced:
    """The calls of one child, turned into changes."""

    def __init__(self, child: int, directory: Path, told: int) -> None:
        self._child, self._directory, self._told = child, str(directory.resolve()), told
        self._names = CALLS[platform.machine()]
        self._offsets: dict[int, int] = {}
        self.changes: list[Call] = []

    def call(self, number: int, arguments: tuple[int, ...], result: int, before: dict[str, object]) -> None:
        name = self._names[number]
        a = arguments
        if name in ("open", "openat", "creat"):
            path = before.get("path")
            if path is not None and before.get("created"):
                self.changes.append(Call("create", str(path)))
        elif name in ("write", "pwrite"):
            self._write(a, result, before, None if name == "write" else a[3])
        elif name == "sendfile" and (path := before.get("path")) is not None:
            place = before["offset"]
            assert isinstance(place, int)
            with open(os.path.join(self._directory, str(path)), "rb") as file:
                file.seek(place)
                self.changes.append(Call("write", str(path), file.read(result), place))
        elif name in ("ftruncate", "truncate"):
            if (path := before.get("path")) is not None:
                self.changes.append(Call("size", str(path), place=a[1]))
        elif name.startswith("rename"):
            self.changes.append(Call("rename", str(before["path"]), target=str(before["target"])))
        elif name in ("unlink", "unlinkat", "rmdir"):
            if (path := before.get("path")) is not None:
                self.changes.append(Call("remove", str(path)))
        elif name in ("mkdir", "mkdirat"):
            if (path := before.get("path")) is not None:
                self.changes.append(Call("directory", str(path)))
        elif name in ("fsync", "fdatasync"):
            if (path := before.get("path")) is not None:
                self.changes.append(Call("sync", str(path)))
        elif before.get("path") is not None and name not in ("mmap", "fallocate", "sendfile"):
            raise NotImplementedError(f"{name} on {before['path']}")

    def look(self, number: int, a: tuple[int, ...]) -> dict[str, object]:
        """What must be known before the call is made."""
        name = self._names[number]
        if name in ("open", "openat", "creat"):
            path = self._relative(self._string(a[0] if name != "openat" else a[1]))
            flags = {"open": a[1], "openat": a[2], "creat": O_CREAT | O_TRUNC}[name]
            if path is None:
                return {}
            exists = os.path.exists(os.path.join(self._directory, path))
            if exists and flags & O_TRUNC:
                raise NotImplementedError(f"{path} is emptied by opening it")
            return {"path": path, "created": bool(flags & O_CREAT) and not exists}
        if name in ("write", "pwrite", "ftruncate", "fsync", "fdatasync", "fallocate", "writev", "pwritev", "sendfile"):
            entry: dict[str, object] = {"path": self._of_descriptor(a[0])}
            if name in ("write", "sendfile") and entry["path"] is not None:
                entry["offset"] = self._position(a[0])
            return entry
        if name == "copy_file_range":
            return {"path": self._of_descriptor(a[2])}
        if name == "mmap":
            if a[3] & MAP_SHARED and a[2] & PROT_WRITE and (path := self._of_descriptor(a[4])) is not None:
                raise NotImplementedError(f"{path} is mapped")
            return {}
        if name in ("rename", "renameat", "renameat2"):
            one, other = (a[0], a[1]) if name == "rename" else (a[1], a[3])
            return {"path": self._relative(self._string(one)), "target": self._relative(self._string(other))}
        first = a[1] if name in ("unlinkat", "mkdirat") else a[0]
        if name == "unlinkat" and a[0] & 0xFFFFFFFF != AT_FDCWD & 0xFFFFFFFF:
            base = os.readlink(f"/proc/{self._child}/fd/{a[0]}")
            return {"path": self._relative(os.path.join(base, self._string(first)))}
        return {"path": self._relative(self._string(first))}

    def _write(self, a: tuple[int, ...], result: int, before: dict[str, object], offset: int | None) -> None:
        if a[0] == self._told:
            self.changes.append(Call("told", data=self._memory(a[1], result)))
        elif (path := before.get("path")) is not None:
            place = before["offset"] if offset is None else offset
            assert isinstance(place, int)
            self.changes.append(Call("write", str(path), self._memory(a[1], result), place))

    def _of_descriptor(self, descriptor: int) -> str | None:
        try:
            return self._relative(os.readlink(f"/proc/{self._child}/fd/{descriptor & 0xFFFFFFFF}"))
        except OSError:
            return None

    def _position(self, descriptor: int) -> int:
        with open(f"/proc/{self._child}/fdinfo/{descriptor}") as file:
            return int(file.readline().split()[1])

    def _relative(self, path: str) -> str | None:
        path = os.path.join(f"{os.readlink(f'/proc/{self._child}/cwd')}", path)
        if path == self._directory:
            return "."
        return path[len(self._directory) + 1 :] if path.startswith(self._directory + "/") else None

    def _string(self, address: int) -> str:
        data = b""
        while b"\0" not in data:
            data += self._memory(address + len(data), 4096 - (address + len(data)) % 4096)
        return os.fsdecode(data.partition(b"\0")[0])

    def _memory(self, address: int, size: int) -> bytes:
        with open(f"/proc/{self._child}/mem", "rb", buffering=0) as file:
            file.seek(address)
            return file.read(size)


def changes(directory: Path, action: Callable[[Callable[[bytes], None]], None]) -> list[Call]:
    """What an action changes in a directory.

    Args:
        directory: Files outside of it do not count.
        action: Done in a child; called with a function by which it tells how far it is.

    Raises:
        NotPermitted: Tracing is not possible here.
        RuntimeError: The action failed.
    """
    if platform.system() != "Linux" or platform.machine() not in CALLS:
        raise NotPermitted("the tracer knows Linux on x86_64 and aarch64 only")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    told = os.open(os.devnull, os.O_WRONLY)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if libc.ptrace(TRACEME, 0, None, None) < 0:
                code = 77
            else:
                os.kill(os.getpid(), signal.SIGSTOP)
                action(lambda data: (os.write(told, data), None)[1])
                code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        return _follow(libc, child, _Traced(child, directory, told))
    finally:
        os.close(told)


def _follow(libc: ctypes.CDLL, child: int, traced: _Traced) -> list[Call]:
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        raise NotPermitted("a child may not be traced here")
    if libc.ptrace(SETOPTIONS, child, None, GOOD_STOPS | EXIT_KILL) < 0:
        raise NotPermitted(os.strerror(ctypes.get_errno()))
    info = ctypes.create_string_buffer(88)
    pending: tuple[int, tuple[int, ...], dict[str, object]] | None = None
    deliver = 0
    while True:
        if libc.ptrace(SYSCALL, child, None, deliver) < 0:
            raise RuntimeError(errno.errorcode[ctypes.get_errno()])
        _, status = os.waitpid(child, 0)
        deliver = 0
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if status:
                raise RuntimeError(f"the traced action ended with status {status}")
            return traced.changes
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            deliver = os.WSTOPSIG(status)
            continue
        if libc.ptrace(GET_SYSCALL_INFO, child, len(info), ctypes.addressof(info)) <= 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise NotPermitted("the kernel does not say what is called (Linux 5.3 does)")
        if info.raw[0] == ENTRY:
            number, *arguments = struct.unpack_from("<7Q", info.raw, 24)
            pending = None
            if number in CALLS[platform.machine()]:
                pending = number, tuple(arguments), traced.look(number, tuple(arguments))
        elif info.raw[0] == EXIT and pending is not None:
            result = struct.unpack_from("<q", info.raw, 24)[0]
            if result >= 0:
                traced.call(pending[0], pending[1], result, pending[2])
            pending = None
