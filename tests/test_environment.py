"""A script that is not changed is recorded when the environment asks for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_sgdinf import RunLog, TrajectoryRecorder, environment
from lightning_sgdinf.errors import ConfigurationError

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(autouse=True)
def _no_recorders_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_recorders", {})


@pytest.mark.parametrize("group", ["lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory"])
def test_lightning_finds_the_factory(group: str) -> None:
    factories = [point for point in entry_points(group=group) if point.name == "sgdinf"]
    assert factories, "the installed package is older than pyproject.toml: pip install --no-deps -e ."
    assert factories[0].load() is environment.callbacks


def test_without_the_variable_a_trainer_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGDINF_RECORD", raising=False)
    assert not [c for c in pl.Trainer(**QUIET).callbacks if isinstance(c, TrajectoryRecorder)]
    monkeypatch.setenv("SGDINF_RECORD", "")
    assert environment.callbacks() == []


def test_with_it_every_fit_of_the_script_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGDINF_RECORD", f"{tmp_path / 'run.tlog'}?keep=final&codec=none")
    for _ in range(2):
        pl.Trainer(max_steps=3, limit_val_batches=0, **QUIET).fit(BoringModel())
    for name in ("run.tlog", "run-2.tlog"):
        with RunLog.open(tmp_path / name) as log:
            assert len(log) == 3
            assert log.header.keep == "final"


def test_options_have_the_recorders_names_and_types() -> None:
    assert environment.parse("runs/a.tlog") == ("runs/a.tlog", {})
    assert environment.parse("a?keep=every(3)&overwrite=true&strict=False") == (
        "a",
        {"keep": "every(3)", "overwrite": True, "strict": False},
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("?keep=final", "there is no path"),
        ("a?kep=final", r"no option 'kep', only keep, codec"),
        ("a?keep", "keep needs one value"),
        ("a?keep=final&keep=final", "keep needs one value"),
        ("a?overwrite=maybe", "overwrite is true or false, not 'maybe'"),
        ("a?keep=sometimes", "unknown keep='sometimes'"),
        ("a?resume=perhaps", "resume is 'perhaps'"),
    ],
)
def test_nonsense_is_refused(value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGDINF_RECORD", value)
    with pytest.raises(ConfigurationError, match=says):
        environment.callbacks()


def test_without_the_variable_it_costs_no_import(repository: Path) -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import lightning_sgdinf.environment\n"
        "assert lightning_sgdinf.environment.callbacks() == []\n"
        "new = sorted(set(sys.modules) - before)\n"
        "print(*(name for name in new if name.split('.')[0] not in sys.stdlib_module_names))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=repository, check=True
    )
    own = ("environment", "errors", "plain_text")
    assert completed.stdout.split() == ["lightning_sgdinf", *(f"lightning_sgdinf.{part}" for part in own)]
