"""Pages of merged runs and of studies, looked through by axe, in the browser; the report's own is in test_explorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_sgdinf.report import Bars, Example, Merged, Sheet, Table
from lightning_sgdinf.report.merged import ResultPage
from lightning_sgdinf.report.repair import FailureRow, RepairPage
from lightning_sgdinf.report.unlearning import CostPoint, ForgettingPage

EXAMPLES = tuple((j, Example(image=np.full((8, 8), j / 9), label=f"label {j}", true_label="other")) for j in range(3))
COLUMNS = ("cause", "treatment", "value", "refused")
TABLE = Table("repair", "What it says.", COLUMNS, (("a", "b", 0.5, None), ("a", "c", None, "no")))


def merged() -> ResultPage:
    return Merged(
        title="Runs",
        about="3 jobs",
        bars=Bars(metric="loss", values={"a": (0.5, 0.7), "b": (0.2,)}),
        sheets=(Sheet(title="seed 0", rows={"a": EXAMPLES}),),
        tables=(TABLE,),
        notes=("Fewer than six runs.",),
        findings=("a: 0.5 before, 0.6 after.",),
        sureness=("a: may be chance.",),
    )


def repair() -> ResultPage:
    failures = (FailureRow(number=3, example=EXAMPLES[0][1], answers={"a": "label 0", "b": "label 1"}),)
    losses = {"a": (0.5, 0.7)}
    return RepairPage(
        title="Repair", about="a", tables=(TABLE,), losses=losses, failures=failures, causes={"a": EXAMPLES}
    )


def unlearning() -> ResultPage:
    points = (CostPoint(method="a", epochs=1.0, divergences=(0.1, 0.2)),)
    confusions, names = {"a": np.eye(2)}, ("x", "y")
    tables: Any = {"tables": (TABLE,), "points": points, "confusions": confusions, "class_names": names}
    return ForgettingPage(title="Unlearning", about="a", examples=EXAMPLES, **tables)


@pytest.mark.parametrize("make", [merged, repair, unlearning])
def test_axe_finds_nothing(browser: Any, make: Callable[[], ResultPage], tmp_path: Path) -> None:
    package = pytest.importorskip("axe_playwright_python")
    axe = Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    path = tmp_path / "page.html"
    path.write_text(make().page, encoding="utf-8")
    for width, scheme in ((1280, "light"), (390, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(path.as_uri())
        page.evaluate(f"{axe};0")
        result = page.evaluate("() => axe.run({resultTypes: ['violations']})")
        assert len(result["passes"]) > 20, "the test is degenerate"
        assert [(v["impact"], v["id"], v["nodes"][0]["html"]) for v in result["violations"]] == []
        context.close()
