"""Pieces of long work on disk: each is one file that is whole or absent, so that a job that was stopped goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.errors import ConfigurationError

Json = Any
"""What JSON can hold."""


def replace_json(path: Path, content: Json) -> None:
    """Write a value as JSON, at once."""
    replace_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_json(path: Path) -> Json:
    """A value that `replace_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest(*content: Json) -> str:
    """16 hexadecimal digits that tell values from others."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def flat(node: Json, place: str = "") -> dict[str, Json]:
    """Leaves of nested settings by their dotted place."""
    if not isinstance(node, Mapping):
        return {place: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{place}.{key}" if place else key).items()}


def found_or_made(path: Path, make: Callable[[], Json], *, holds: Callable[[Json], bool] = lambda _: True) -> Json:
    """What a file holds, if it is there; otherwise what ``make`` gives, which it then holds.

    Of several processes that want the same piece one makes it and the others wait.

    Args:
        path: The piece, JSON.
        make: Makes its content.
        holds: Whether a piece that is there still is what is wanted.
    """
    if path.is_file() and holds(found := read_json(path)):
        return found
    with locked(path):
        if path.is_file() and holds(found := read_json(path)):
            return found
        made = make()
        replace_json(path, made)
        return made


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same path; the system lets go when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def claim(file: Path, settings: Mapping[str, Json]) -> None:
    """Note the settings that all results of a folder have in common, or go on in a folder of the same ones.

    Args:
        file: Where they are kept.
        settings: Plain values.

    Raises:
        ConfigurationError: The folder has results of other settings; names the first that differ.
    """
    settings = json.loads(json.dumps(settings))
    if file.is_file() and (known := read_json(file)) != settings:
        there, now = flat(known), flat(settings)
        pairs = {key: (there.get(key, "nothing"), now.get(key, "nothing")) for key in {**there, **now}}
        differing = "; ".join(f"{key}: {a} there, {b} now" for key, (a, b) in pairs.items() if a != b)
        raise ConfigurationError(
            f"{file.parent} has results of other settings ({differing[:400]}); give another job.cell or output_dir, or "
            "remove the folder"
        )
    replace_json(file, settings)
