"""Every block of Python on the pages runs, in order, on the project of the first page, which is recorded once."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_sgdinf.log.command import main as sgdinf_log
from lightning_sgdinf.testing import EstimatorSuite, ModelUpdateSuite, UpdateRuleSuite
from tests.test_docs import DOCS, PAGES, name

FIRST = DOCS / "getting-started.md"
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(python|sh)\n(.*?)^```", re.M | re.S)
PROJECT = ("L", "torch", "F", "Net", "Data", "model", "dm", "scores", "InfluenceRunner", "TrajectoryRecorder")
"""What the first page leaves to the others."""


@dataclass(frozen=True)
class Block:
    """Something to run: a line of ``sgdinf-log``, or code and where it is."""

    line: int
    code: str
    is_python: bool


def runnable(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start(3)].count("\n")
        if match[2] == "python" and not match[1]:
            found.append(Block(line, match[3], True))
        elif not match[1]:
            found += [Block(line, c, False) for c in match[3].splitlines() if c.startswith("sgdinf-log ")]
    return found


def run(page: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run the blocks of a page; suites that it defines are run as pytest would."""
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    vars(module).update(given)
    sys.modules[module.__name__] = module  # so that its classes can be found again
    try:
        for block in runnable(page):
            if block.is_python:
                known = set(vars(module))
                exec(compile("\n" * block.line + block.code, str(page), "exec"), vars(module))
                for new in sorted(set(vars(module)) - known):
                    run_suite(vars(module)[new])
            else:
                words = shlex.split(block.code, comments=True)[1:]
                assert sgdinf_log(words) == 0, f"{name(page)}: {block.code}"
    finally:
        del sys.modules[module.__name__]
    return {n: vars(module)[n] for n in PROJECT if n in vars(module)}


SUITES = (EstimatorSuite, ModelUpdateSuite, UpdateRuleSuite)


def run_suite(kind: Any) -> None:
    if isinstance(kind, type) and issubclass(kind, SUITES) and kind.__name__[:4] == "Test":
        for test in [n for n in dir(kind) if n.startswith("test_")]:
            getattr(kind(), test)()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """With defaults of a reader: warnings are shown and not raised, and nothing goes to the network."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The first page, run: its folder, and what it leaves to the others."""
    folder = tmp_path_factory.mktemp("first")
    with working_in(folder):
        return folder, run(FIRST, {})


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_blocks_run(page: Path, project: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    first, names = project
    assert set(names) == set(PROJECT)
    if page == FIRST:
        return
    if not any(".fit(" in block.code for block in runnable(page)):  # pages that train make a record of their own
        shutil.copytree(first / "runs", tmp_path / "runs")
    with working_in(tmp_path):
        run(page, {**names, "model": names["Net"]()})


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- not run: needs a display -->\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n")
    assert [block.code for block in runnable(page)] == ["x = 1\n"]
    page.write_text(page.read_text() + "\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run(page, {})
