"""Headers, layouts and plain values as JSON documents.

Numbers that JSON has no word for are written as ``{"$float": "nan" | "inf" | "-inf"}``. Readers ignore names they do
not know, so that later releases can add some.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from lightning_sgdinf.foreign_files import check_proportions
from lightning_sgdinf.log.bit_patterns import word_type
from lightning_sgdinf.log.records import Header
from lightning_sgdinf.state import Layout, TensorSpec

_MAX_DIMENSIONS, _MAX_ELEMENTS = 32, 1 << 48
_RUN_ID = re.compile(r"[!-~]{1,200}")
_HEADER_KINDS: dict[str, type] = {
    "run_id": str, "created": str, "model": str, "optimizer": str, "parameters": list, "constant_digest": int,
    "precision": str, "keep": str, "datasets": list, "replayable": str, "environment": dict, "extra": dict,
}  # fmt: skip

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def to_json(value: Any) -> bytes:
    """Return a value as ASCII JSON; floats come back exactly."""
    try:
        return _encode(value).encode("ascii")
    except ValueError:
        return _encode(_spell_out(value)).encode("ascii")


def to_plain_json(value: Any) -> bytes:
    """Return a value as JSON that `from_plain_json` reads back.

    Raises:
        ValueError: It would not: the document is too large, or some text has half a character.
    """
    data = to_json(value)
    check_proportions(data)
    _check_texts(data, json.loads)
    return data


def from_json(data: bytes) -> Any:
    """Return the value of a document written by `to_json`; tuples come back as lists.

    Raises:
        ValueError: It is none, or so large that it is none of ours.
    """
    check_proportions(data)
    text = data.decode("ascii")
    return json.loads(text, object_hook=_read_float) if '"$float"' in text else json.loads(text)


def from_plain_json(data: bytes) -> Any:
    """Return the value of a document whose texts can be shown and stored: none has half a character.

    Raises:
        ValueError: It is none.
    """
    value = from_json(data)
    _check_texts(data, lambda _: value)
    return value


def _check_texts(data: bytes, value_of: Callable[[bytes], Any]) -> None:
    if b"\\ud" in data.lower():
        try:
            json.dumps(value_of(data), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            text = error.object[max(0, error.start - 40) : error.end + 40]
            raise ValueError(f"a text has half a character: ...{text!a}...") from error


def whole(value: Any, what: str, *, least: int = 0) -> int:
    """Return a value that is an integer of at least ``least``.

    Raises:
        TypeError, ValueError: It is something else.
    """
    if type(value) is not int:
        raise TypeError(f"{what} is {value!r:.80}, expected an integer")
    if not least <= value < 1 << 63:
        raise ValueError(f"{what} is {value!r:.80}, expected at least {least}")
    return value


def text(value: Any, what: str) -> str:
    """Return a value that is a string.

    Raises:
        TypeError: It is something else.
    """
    if type(value) is not str:
        raise TypeError(f"{what} is {value!r:.80}, expected text")
    return value


def header_to_json(header: Header) -> bytes:
    """Return a header as a document: one member per attribute."""
    return to_plain_json({f.name: _plain(getattr(header, f.name)) for f in fields(header)})


def header_from_json(data: bytes) -> Header:
    """Return the header of a document."""
    content = from_plain_json(data)
    known = {f.name for f in fields(Header)}
    members = {name: value for name, value in content.items() if name in known}
    for name, kind in _HEADER_KINDS.items():
        if type(members.get(name, kind())) is not kind:
            raise TypeError(f"{name} is {members[name]!r:.80}, expected {kind.__name__}")
    members["run_id"] = checked_run_id(members["run_id"])
    members["parameters"] = tuple(
        (text(name, "a name"), _shape(shape), text(dtype, "a dtype")) for name, shape, dtype in members["parameters"]
    )
    members["datasets"] = tuple(
        (text(name, "a data set"), whole(length, "a length", least=-1)) for name, length in members.get("datasets", ())
    )
    return Header(**members)


def checked_run_id(value: Any) -> str:
    """Return the name of a run: some printable ASCII characters.

    Raises:
        TypeError, ValueError: It is none.
    """
    if not _RUN_ID.fullmatch(text(value, "run_id")):
        raise ValueError(f"run_id is {value!r:.80}, expected up to 200 printable characters")
    return value


def layout_to_json(layout: Layout) -> bytes:
    """Return a layout as a list of ``[part, name, key, shape, dtype]``."""
    return to_plain_json([[s.part, s.name, s.key, list(s.shape), s.dtype] for s in layout.specs])


def layout_from_json(data: bytes) -> Layout:
    """Return the layout of a document."""
    specs = []
    for part, name, key, shape, dtype in from_plain_json(data):
        if part not in ("param", "buffer", "optimizer"):
            raise ValueError(f"part {part!r:.80}")
        word_type(text(dtype, "a dtype"))
        specs.append(
            TensorSpec(part=part, name=text(name, "a name"), key=text(key, "a key"), shape=_shape(shape), dtype=dtype)
        )
    if len({(s.part, s.name, s.key) for s in specs}) < len(specs):
        raise ValueError("a tensor is there twice")
    return Layout(tuple(specs))


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or len(value) > _MAX_DIMENSIONS:
        raise TypeError(f"{value!r:.80} is no shape")
    shape = tuple(whole(size, "a size") for size in value)
    if math.prod(max(1, size) for size in shape) > _MAX_ELEMENTS:
        raise ValueError(f"a shape of {math.prod(shape)} elements")
    return shape


def _plain(value: Any) -> Any:
    """Return a value whose mappings are dicts, at any depth."""
    if hasattr(value, "items"):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _spell_out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, dict):
        return {name: _spell_out(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell_out(entry) for entry in value]
    return value


def _read_float(members: dict[str, Any]) -> Any:
    return float(members["$float"]) if members.keys() == {"$float"} else members
