"""Faces: what a room's ``__init__`` exports is listed here, and nothing else is public in it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FACES = {
    "log": (
        "CONTINUED", "Clip", "Draw", "Header", "Json", "LogSizes", "LogWriter", "MemoryLog", "MicroBatch", "ParamGroup",
        "RecoveryReport", "Reindexed", "RunLog", "Step", "Trajectory", "VerifyReport", "decode_batch", "encode_batch",
        "key_labels", "read_arrays", "read_header", "recover", "reindex", "state_checksum", "write_arrays",
    ),
    "record": (
        "Budget", "Every", "ExampleKey", "Final", "Keep", "LastEpochs", "TrajectoryRecorder", "Writer", "every",
        "last_epochs",
    ),
}  # fmt: skip
"""Public names by room."""


@pytest.mark.parametrize("room", FACES)
def test_a_face_exports_what_is_public_and_nothing_else(room: str) -> None:
    face = importlib.import_module(f"lightning_sgdinf.{room}")
    assert face.__file__ is not None
    exported = {
        alias.asname
        for node in ast.parse(Path(face.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    modules = {path.stem for path in Path(face.__file__).parent.iterdir()}
    present = {name for name in vars(face) if not name.startswith("_")} - (modules - exported) - {"annotations"}
    assert exported == present == set(FACES[room])
