"""Every example runs, and says what its text promises."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
SAYS = {
    "01": "of the 100 most harmful examples have a wrong label",
    "02": "test images wrong: ",
    "03": "confidence",
    "04": "both ways agree",
    "05": "with both ends verified",
    "07": "extrapolated 1.",
    "08": "generalized 0.",
    "09": "iterated margins, test images wrong: ",
    "06": "Warning: This run amplifies small changes",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(path.parent)  # as for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says of few workers is not the example's business
        module.main()
    said = capsys.readouterr().out
    assert SAYS[path.stem[:2]] in said
    for before, after in re.findall(r"test images wrong: (\d+) -> (\d+)", said):
        assert int(after) < int(before), "what is shown is worth showing"


def test_examples_are_short() -> None:
    assert EXAMPLES
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 100, path.name
