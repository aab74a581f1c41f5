"""The names that each room gives to the others: what is public, and where it is imported from."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_sgdinf"

FACES = {
    "studies": (
        "AgreementJob",
        "CleansingJob",
        "Job",
        "LdsJob",
        "load_or_compute",
        "merge",
        "Parts",
        "pin_settings",
        "PIPELINE_GROUPS",
        "PipelineParts",
        "PipelineResult",
        "ReportSettings",
        "run_pipeline",
        "RunResults",
        "Scratch",
        "StoredRun",
        "TrainedRun",
        "Training",
    ),
    "tasks": (),
}


def imports(file: Path) -> list[tuple[str, ast.alias]]:
    """Every name that a file imports, with the module that it comes from."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is not None]
    return [(node.module or "", alias) for node in statements for alias in node.names]


@pytest.mark.parametrize("room", FACES)
def test_a_room_exports_what_is_public_and_nothing_else(room: str) -> None:
    exported = [alias.name for _, alias in imports(PACKAGE / room / "__init__.py") if alias.asname == alias.name]
    assert sorted(exported, key=str.lower) == list(FACES[room])
    module = importlib.import_module(f"lightning_sgdinf.{room}")
    assert all(getattr(module, name) is not None for name in exported)


@pytest.mark.parametrize("room", FACES)
def test_other_rooms_take_public_names_from_the_face(room: str) -> None:
    others = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] != room]
    around = [
        f"{file.relative_to(PACKAGE)}: {module}.{alias.name}"
        for file in others
        for module, alias in imports(file)
        if module.startswith(f"lightning_sgdinf.{room}.") and alias.name in FACES[room]
    ]
    assert not around
