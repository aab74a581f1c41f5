"""Headers, layouts and plain values as JSON documents.

Numbers that JSON has no word for are written as ``{"$float": "nan" | "inf" | "-inf"}``. Readers ignore names they do
not know, so that later releases can add some.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

from lightning_sgdinf.log.records import Header
from lightning_sgdinf.state import Layout, TensorSpec

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def to_json(value: Any) -> bytes:
    """Return a value as ASCII JSON; floats come back exactly."""
    try:
        return _encode(value).encode("ascii")
    except ValueError:
        return _encode(_spell_out(value)).encode("ascii")


def from_json(data: bytes) -> Any:
    """Return the value of a document written by `to_json`; tuples come back as lists."""
    text = data.decode("ascii")
    return json.loads(text, object_hook=_read_float) if '"$float"' in text else json.loads(text)


def header_to_json(header: Header) -> bytes:
    """Return a header as a document: one member per attribute."""
    return to_json({f.name: _plain(getattr(header, f.name)) for f in fields(header)})


def header_from_json(data: bytes) -> Header:
    """Return the header of a document."""
    known = {f.name for f in fields(Header)}
    members = {name: value for name, value in from_json(data).items() if name in known}
    members["parameters"] = tuple((name, tuple(shape), dtype) for name, shape, dtype in members["parameters"])
    members["datasets"] = tuple((name, length) for name, length in members.get("datasets", ()))
    return Header(**members)


def layout_to_json(layout: Layout) -> bytes:
    """Return a layout as a list of ``[part, name, key, shape, dtype]``."""
    return to_json([[s.part, s.name, s.key, list(s.shape), s.dtype] for s in layout.specs])


def layout_from_json(data: bytes) -> Layout:
    """Return the layout of a document."""
    return Layout(
        tuple(
            TensorSpec(part=part, name=name, key=key, shape=tuple(shape), dtype=dtype)
            for part, name, key, shape, dtype in from_json(data)
        )
    )


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
