"""What importing the package brings along, counted rather than timed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_sgdinf

SCRIPT = """
import sys
import lightning
for statement in ("import lightning_sgdinf", "from lightning_sgdinf import TrajectoryRecorder"):
    before = set(sys.modules)
    exec(statement)
    print(*sorted(set(sys.modules) - before))
"""


def test_importing_brings_along_nothing_and_the_recorder_only_the_log(repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    package, recorder = (line.split() for line in done.stdout.splitlines())
    assert package == ["lightning_sgdinf"]
    tops = {name.split(".")[0] for name in recorder} - set(sys.stdlib_module_names)
    tops = {name for name in tops if not name.startswith(("_cython", "cython"))}
    assert tops == {"lightning_sgdinf", "h5py", "hdf5plugin", "zlib_ng"}
    parts = {name.split(".")[1] for name in recorder if name.startswith("lightning_sgdinf.")}
    assert {"record", "log"} <= parts
    backwards = {"replay", "adjoint", "estimators", "truth", "runner", "fit_end"}
    assert not parts & {*backwards, "report", "tasks", "evaluation"}


def test_type_checkers_and_users_see_the_same_names() -> None:
    tree = ast.parse(Path(lightning_sgdinf.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == {name: f"lightning_sgdinf.{home}" for name, home in lightning_sgdinf._HOMES.items()}
    for name, home in seen.items():
        assert getattr(lightning_sgdinf, name) is getattr(importlib.import_module(home or ""), name)
    assert dir(lightning_sgdinf) == sorted([*seen, "__version__"])


def test_star_import_gives_the_public_classes_and_nothing_else(repository: Path) -> None:
    script = "from lightning_sgdinf import *\nprint(*sorted(name for name in dir() if name[:2] != '__'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    classes = {name for name in lightning_sgdinf._HOMES if isinstance(getattr(lightning_sgdinf, name), type)}
    assert set(done.stdout.split()) == set(lightning_sgdinf.__all__) == classes
    assert classes == {
        *("TrajectoryRecorder", "InfluenceRunner", "ScoreOnFitEnd", "Scores"),
        *("Certificate", "Ranking", "Selection", "RunLog"),
    }


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Recorder'"):
        lightning_sgdinf.Recorder
