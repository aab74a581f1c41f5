"""The names that each room gives to the others: what is public, and where it is imported from."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_sgdinf"

FACES = {
    "cleansing": (
        "choose_by_each",
        "cleansing_curve",
        "CleansingContext",
        "CleansingStrategy",
        "CounterfactualRetraining",
        "evaluate_classifier",
        "Evaluation",
        "halve",
        "Halves",
        "held_out_value",
        "InfeasibleWarning",
        "logits_and_labels",
        "lost_classes",
        "measure_reliability",
        "ModelPredictions",
        "Negative",
        "OnExcess",
        "random_ranking",
        "Relabel",
        "Reliability",
        "RetrainingCache",
        "ScratchRetraining",
        "Selection",
        "Stable",
        "StateEvaluation",
        "StrategyOutcome",
        "TopFraction",
        "TopK",
        "Trial",
        "Validated",
    ),
    "evaluation": (
        "Agreement",
        "CleansingCurve",
        "compare_removals",
        "Comparison",
        "datamodelling_score",
        "DatamodellingScore",
        "detect",
        "Detection",
        "holm",
        "jaccard_of_extremes",
        "kendall_tau",
        "measure_agreement",
        "paired_t_test",
        "pearson",
        "random_subsets",
        "refinement_curve",
        "RefinementPoint",
        "Removal",
        "sign_flip_test",
        "spearman",
        "unpaired_t_test",
        "wilcoxon_test",
    ),
    "report": (
        "as_example",
        "Bars",
        "BeforeAfter",
        "Cell",
        "Cost",
        "DrawnReport",
        "Example",
        "Explanation",
        "finish_run",
        "log_merged",
        "log_report",
        "Merged",
        "Panel",
        "publish_report",
        "Rendered",
        "Renderer",
        "ReportData",
        "SafeHtml",
        "save_scatter",
        "Sheet",
        "Table",
        "write_merged",
        "write_page",
        "write_report",
    ),
    "zoo": (
        "Adult",
        "AsymmetricNoise",
        "BinaryData",
        "BinaryDataset",
        "BinaryExamples",
        "BinarySource",
        "Census",
        "Cifar10",
        "Cifar10N",
        "cifar_net",
        "Classifier",
        "cross_validated_penalty",
        "DigitPair",
        "Digits",
        "enter_span",
        "EpochOrder",
        "flip_labels",
        "ImageData",
        "ImageDataset",
        "ImageSource",
        "LabelledImages",
        "LabelledVectors",
        "LabelNoise",
        "logistic_regression",
        "mlp",
        "Mnist",
        "mnist_net",
        "NewsHardware",
        "NoisyLabels",
        "PenalisedClassifier",
        "Posts",
        "random_crop",
        "random_flip",
        "read_idx",
        "six_conv_net",
        "small_cnn",
        "span_of",
        "split_ids",
        "Stl10",
        "SymmetricNoise",
        "VectorData",
        "VectorDataset",
        "VectorSource",
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
