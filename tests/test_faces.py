"""The names that each room gives to the others: what is public, and where it is imported from."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_sgdinf"

FACES = {
    "adjoint": (
        "Adjoint",
        "AdjointStep",
        "after_average",
        "BoundQuery",
        "CompiledSteps",
        "difference",
        "differentiate",
        "FirstOrder",
        "hessian_rows",
        "known_optimizers",
        "LinearStep",
        "own_gradients",
        "own_hessian_rows",
        "pull_rows",
        "Pulled",
        "PulledStep",
        "register_rule",
        "rule_for",
        "take_step",
        "Tangent",
        "TOGETHER",
        "Update",
        "UpdateRule",
    ),
    "checks": (
        "check_gradient",
        "check_trust",
        "fast_plan",
        "Growth",
        "open_rerun",
        "Plan",
        "StepComparison",
        "window_examples",
    ),
    "kernels": (
        "ATTENTION",
        "Handler",
        "Interceptor",
        "layer_handlers",
        "RunningStatistics",
        "Twins",
        "VMAP_LAYERS",
    ),
    "replay": (
        "BatchSource",
        "clip_parameters",
        "CounterfactualRun",
        "Course",
        "display_labels",
        "divided",
        "Divisor",
        "Edit",
        "epoch_start",
        "Examples",
        "feed",
        "first_step_of",
        "group_options",
        "Host",
        "LOSSES",
        "Objective",
        "open_objective",
        "open_run",
        "OpenedRun",
        "optimizer_class",
        "rebuild",
        "refuse_changes",
        "relabelled",
        "replace_second",
        "ReplaceLabels",
        "Replayer",
        "required_options",
        "Retracer",
        "rows_are_separate",
        "RowShards",
        "states_backwards",
        "stored_at_or_before",
        "validation_context",
    ),
    "scoring": (
        "asks_a_query",
        "Job",
        "job_for",
        "JobResult",
        "Method",
        "Settings",
        "Walk",
    ),
    "updates": (
        "cleansed_dataset",
        "CounterfactualReplay",
        "FreshTraining",
        "load_state",
        "ModelUpdate",
        "ReducedDataset",
        "RelabelledDataset",
        "replace_label",
        "Retraining",
        "state_of",
        "Updated",
        "with_state",
    ),
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
