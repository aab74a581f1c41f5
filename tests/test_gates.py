"""Rules about the source itself: sizes, borders, words, and settings that name what exists.

`tests/gates` has the rules and, for each, a small tree that breaks it. A list below names what a rule does not hold for
yet; it can only get shorter, since a name on it that breaks nothing fails, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.gates import rules
from tests.gates.source import Offence, read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_sgdinf"
MODULES = read(PACKAGE)
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

ASKING = frozenset()
"""Rooms with docstrings that still begin with a question word."""

VAGUE = frozenset({"evaluation"})  # an attribute's earlier name, for one release
"""Rooms in which something is still named ``found``."""

CROWDED: frozenset[str] = frozenset()
"""Classes that still have more than 25 members."""

CIRCULAR = frozenset()
"""Rooms in which modules still import one another."""

HIDDEN_DOORS = (
    ("lightning_sgdinf.scores", "lightning_sgdinf.report"),
    ("lightning_sgdinf.record.planned", "lightning_sgdinf.planning"),
    ("lightning_sgdinf.log.command", "lightning_sgdinf.planning.command"),
)
"""`Scores.report` asks for the report, which knows scores, when it is called; the plan of a run, which records and
replays, is asked for likewise."""

BORDERS = {
    ("h5py", "hdf5plugin"): ("log/",),
    ("hydra", "omegaconf"): ("tasks/",),
    ("wandb",): ("report/wandb_sink.py",),
    ("matplotlib",): ("report/",),
    ("pandas",): ("scores.py",),
    ("sklearn",): ("baselines/", "zoo/"),
    ("cleanlab",): ("baselines/confident_learning.py",),
    ("lightning", "pytorch_lightning"): (
        "record/",
        "replay/lightning_host.py",
        "replay/dataloaders.py",
        "runner.py",
        "fit_end.py",
        "planning/trial.py",
        "ensembles/",
        "zoo/",
        "studies/",
    ),
}
"""Libraries, under each of their names, and the beginnings of the paths that bring them in."""

COMPUTED = frozenset(
    {
        "__init__.py",
        "extras.py",
        "renamed.py",
    }
)
"""Files that import a module by a name that is computed."""

TESTS_OF_NO_ROOM = frozenset(
    {"architecture", "bare", "docs", "docs_code", "examples", "faces", "gates", "import", "installed", "lightning_cli"}
    | {"thirdparty"}
)

UNTESTED = frozenset({"scoring", "testing"})
"""Rooms whose tests still lie in other folders than their own."""


def show(offences: Iterable[Offence]) -> list[str]:
    return [offence.text for offence in offences]


def hold_outside(offences: Iterable[Offence], unfinished: Iterable[str]) -> None:
    """Fail for what breaks a rule in other rooms than those listed, and for rooms listed that break it no more."""
    offences, listed = list(offences), set(unfinished)
    assert not [offence.text for offence in offences if offence.room not in listed]
    finished = listed - {offence.room for offence in offences}
    assert not finished, f"{sorted(finished)} hold the rule now: take them off the list"


def test_modules_are_read() -> None:
    assert len(MODULES) > 20


@pytest.mark.parametrize("rule", [rules.long_modules, rules.long_functions, rules.undocumented])
def test_sizes_and_docstrings(rule: rules.Rule) -> None:
    assert not show(rule(MODULES))


def test_classes_are_small() -> None:
    by_class = [Offence(offence.text.split()[1], offence.text) for offence in rules.crowded_classes(MODULES)]
    hold_outside(by_class, CROWDED)


def test_docstrings_do_not_begin_with_a_question_word() -> None:
    hold_outside(rules.questions(MODULES), ASKING)


def test_names_say_what_they_name() -> None:
    hold_outside(rules.vague_names(MODULES), VAGUE)


@pytest.mark.parametrize("libraries", BORDERS, ids=" or ".join)
def test_libraries_stay_where_they_belong(libraries: tuple[str, ...]) -> None:
    assert not show(rules.beyond_border(MODULES, libraries, BORDERS[libraries]))


def test_imports_can_be_read_without_running_them() -> None:
    by_file = [Offence(offence.text.partition(":")[0], offence.text) for offence in rules.computed_imports(MODULES)]
    hold_outside(by_file, COMPUTED)


def test_no_modules_import_one_another() -> None:
    hold_outside(rules.import_circles(MODULES, HIDDEN_DOORS), CIRCULAR)


def entries() -> Iterator[str]:
    """Names of the modules that users, Lightning and Hydra reach: commands, entry points, configurations, faces."""
    yield "lightning_sgdinf"
    yield from (target.split(":")[0] for target in [*SETTINGS["project"]["scripts"].values(), *entry_points()])
    for page in (ROOT / "docs" / "api").glob("*.md"):
        yield from re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
    for config in (ROOT / "conf").rglob("*.yaml"):
        targets = re.findall(r"_target_: (lightning_sgdinf[.\w]*)", config.read_text(encoding="utf-8"))
        yield from (target.rpartition(".")[0] for target in targets)


def test_every_module_is_reached() -> None:
    assert not show(rules.dead_modules(MODULES, entries()))


def test_tests_live_in_the_folder_of_their_room() -> None:
    rooms = {path.name + "/" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem for path in PACKAGE.glob("[a-z]*.py")}
    hold_outside(rules.misplaced_tests(ROOT / "tests", rooms, TESTS_OF_NO_ROOM), UNTESTED)


def test_importing_the_package_is_light_and_silent() -> None:
    assert not rules.import_costs(ROOT)


def entry_points() -> Iterator[str]:
    for group in SETTINGS["project"].get("entry-points", {}).values():
        yield from group.values()


def test_settings_name_what_exists() -> None:
    assert not rules.missing_paths(ROOT, rules.paths_in_settings(SETTINGS))


def test_the_oldest_versions_are_tried() -> None:
    project = SETTINGS["project"]
    optional = project["optional-dependencies"]
    wanted = [name for extra in ("report", "cli", "cleanlab", "wandb", "tensorboard") for name in optional[extra]]
    tools = [name for name in optional["dev"] if name.startswith(("pytest>", "hypothesis>"))]
    pins = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    apart = list(rules.bounds_apart([*project["dependencies"], *wanted, *tools], pins))
    assert [line for line in apart if not line.startswith("torch:")] == []


def test_repository_speaks_of_the_product_alone() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert not list(rules.foreign_words(ROOT, tracked))
