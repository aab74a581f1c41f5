"""What an offline run of Weights & Biases leaves in its ``.wandb`` file, read without wandb's own reader: blocks of 32
KiB with records as in LevelDB's log, each a protocol buffer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEAD, _FILE_HEAD = 32768, 7, 7


def read_environment_anew() -> None:
    """wandb reads its settings from the environment once per process, whichever test was the first to touch it."""
    import wandb

    wandb.teardown()


def records(file: Path) -> Iterator[Any]:
    """The records of a finished run, in order."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # what writes the file is another process, and may be at it when the run has finished
    data, offset, parts = file.read_bytes(), _FILE_HEAD, b""
    assert data[:4] == b":W&B"
    while offset + _HEAD <= len(data):
        left = _BLOCK - offset % _BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        if left < _HEAD or kind == 0:
            offset += left
            continue
        parts += data[offset + _HEAD : offset + _HEAD + length]
        offset += _HEAD + length
        if kind in (1, 4):  # whole, or last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(file: Path) -> list[dict[str, Any]]:
    """Every row that was logged."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def config(file: Path) -> dict[str, Any]:
    """The settings a run can be grouped by."""
    values: dict[str, Any] = {}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        source = record.run.config if kind == "run" else record.config if kind == "config" else None
        for item in source.update if source is not None else ():
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return values


def summary(file: Path) -> dict[str, Any]:
    """The last value of every key of the summary, as a table of runs shows them."""
    values: dict[str, Any] = {}
    for record in records(file):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            for item in record.summary.remove:
                values.pop("/".join(item.nested_key) or item.key, None)
    return values
