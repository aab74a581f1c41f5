"""A directory as it would be after a crash, made from the list of all that was done to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.log.faults.traced import Call

PAGE = 4096


class Disk:
    """Files in memory, changed call by call.

    Args:
        start: Directory as it was before the first call, if it was there.
    """

    def __init__(self, start: Path | None = None) -> None:
        self.files: dict[str, bytearray] = {}
        self.directories: set[str] = set()
        if start is not None and start.exists():
            self.files = {str(p.relative_to(start)): bytearray(p.read_bytes()) for p in start.rglob("*") if p.is_file()}

    def apply(self, call: Call) -> None:
        """One more call."""
        if call.kind == "create":
            self.files[call.path] = bytearray()
        elif call.kind == "write":
            self._write(call.path, call.place, call.data)
        elif call.kind == "size":
            file = self.files[call.path]
            del file[call.place :]
            file.extend(bytes(call.place - len(file)))
        elif call.kind == "rename":
            self._rename(call.path, call.target)
        elif call.kind == "remove":
            self.files.pop(call.path, None)
            self.directories.discard(call.path)
        elif call.kind == "directory":
            self.directories.add(call.path)

    def copy(self) -> Disk:
        """The same, to be changed by itself."""
        twin = Disk()
        twin.files = {name: bytearray(data) for name, data in self.files.items()}
        twin.directories = set(self.directories)
        return twin

    def store(self, directory: Path) -> None:
        """Put it where it can be opened."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name in sorted(self.directories):
            (directory / name).mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)

    def _write(self, path: str, place: int, data: bytes) -> None:
        file = self.files.setdefault(path, bytearray())
        if len(file) < place:
            file.extend(bytes(place - len(file)))
        file[place : place + len(data)] = data

    def _rename(self, path: str, target: str) -> None:
        if path in self.files:
            self.files[target] = self.files.pop(path)


def torn(call: Call) -> list[Call]:
    """A write cut at the boundaries of pages, where the kernel looks whether the process is to die."""
    if call.kind != "write":
        return []
    first = PAGE - call.place % PAGE
    cuts = range(first, len(call.data), PAGE)
    return [Call("write", call.path, call.data[:cut], call.place) for cut in cuts]


def without_power(start: Disk, calls: Iterable[Call], rng: np.random.Generator) -> Disk:
    """The disk when the power fails after some calls: of what was written to a file since it was last synchronised, a
    random half of the pages is missing. Names are changed in order."""
    done = list(calls)
    synced = {}
    for place, call in enumerate(done):
        if call.kind == "sync":
            synced[call.path] = place
        elif call.kind == "rename" and call.path in synced:
            synced[call.target] = synced.pop(call.path)
    disk = start.copy()
    names: dict[str, str] = {}  # of a file at the time of a call, to the name it has in the end
    for call in reversed(done):
        if call.kind == "rename":
            names[call.path] = names.get(call.target, call.target)
    for place, call in enumerate(done):
        if call.kind != "write" or place < synced.get(names.get(call.path, call.path), -1):
            disk.apply(call)
            continue
        offset = 0
        while offset < len(call.data):
            size = min(PAGE - (call.place + offset) % PAGE, len(call.data) - offset)
            if rng.random() < 0.5:
                disk.apply(Call("write", call.path, call.data[offset : offset + size], call.place + offset))
            else:  # the file is as long as it was to be
                end = call.place + offset + size
                file = disk.files.setdefault(call.path, bytearray())
                file.extend(bytes(max(0, end - len(file))))
            offset += size
    return disk
