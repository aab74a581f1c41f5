"""The cache of results on disk: each result is one file that is whole or absent, so that a stopped study goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_sgdinf.atomic_write import locked, replace_bytes
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.foreign_files import read_document

_SHOWN = {"trainer.enable_progress_bar"}
"""Settings that an earlier release pinned though they change no result."""
Json = Any
"""A value that JSON can hold."""


def replace_json(path: Path, content: Json) -> None:
    """Write a value as JSON, at once."""
    try:
        document = json.dumps(content, indent=1, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a name with half a character comes back as it is
        document = json.dumps(content, indent=1).encode()
    replace_bytes(path, document)


def read_json(path: Path) -> Json:
    """Return a value that `replace_json` wrote.

    Raises:
        ConfigurationError: The file is something else.
    """
    return read_document(path)


@contextmanager
def results_of(folder: Path) -> Iterator[None]:
    """Put tables and pages together inside, from results that a study has written below a folder.

    Raises:
        ConfigurationError: Some of them are documents of another form: another version wrote them, or somebody else.
    """
    try:
        yield
    except SgdInfluenceError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{folder}: expected results as this study writes them, got others ({type(error).__name__}: {error}). "
            "Another version wrote them, or they were changed; move them away, and they are computed anew"
        ) from error


def digest(*content: Json) -> str:
    """Return 16 hexadecimal digits that tell values from others."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def flatten(node: Json, prefix: str = "") -> dict[str, Json]:
    """Return the leaves of nested settings by their dotted keys."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {
        k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }


def load_or_compute(
    path: Path, compute: Callable[[], Json], *, is_valid: Callable[[Json], bool] = lambda _: True
) -> Json:
    """Return the content of a file; compute it and write the file first if there is none.

    Of several processes that ask for one result, one computes it and the others wait.

    Args:
        path: Of the result, JSON.
        compute: Returns its content.
        is_valid: Judges the content of an existing file; one that is not valid is computed anew.
    """
    if path.is_file() and is_valid(content := read_json(path)):
        return content
    with locked(path):
        if path.is_file() and is_valid(content := read_json(path)):
            return content
        content = compute()
        replace_json(path, content)
        return content


def pin_settings(file: Path, settings: Mapping[str, Json], *, instead: str = "another output_dir") -> None:
    """Write the settings that all results of a folder share, or check that those written before are the same.

    Args:
        file: Holds them.
        settings: Plain values.
        instead: What to give for other settings, for the message.

    Raises:
        ConfigurationError: The folder has results of other settings; names the first that differ.
    """
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        check_settings(file.parent, read_json(file), settings, instead=instead)
    replace_json(file, settings)


def check_settings(
    path: Path, written: Mapping[str, Json], settings: Mapping[str, Json], *, instead: str = "another output_dir"
) -> None:
    """Refuse to go on from results of other settings.

    Args:
        path: Of the results.
        written: Settings of the results on disk.
        settings: Settings now, plain values that JSON does not change.
        instead: What to give for other settings, for the message.

    Raises:
        ConfigurationError: They differ; names the first that do.
    """
    old, new = ({k: v for k, v in flatten(one).items() if k not in _SHOWN} for one in (written, settings))
    if old == new:
        return
    pairs = {key: (old.get(key, "nothing"), new.get(key, "nothing")) for key in {**old, **new}}
    differing = "; ".join(f"{key}: {a} there, {b} now" for key, (a, b) in pairs.items() if a != b)
    raise ConfigurationError(
        f"{path} has results of other settings ({differing[:400]}); give {instead}, or remove {path}"
    )
