"""Every rule of the source fails on a small tree that breaks it, and holds on one that does not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gates import rules
from tests.gates.source import Module, Offence, brought, circles, read, resolve
from tests.test_gates import SETTINGS, hold_outside

FINE = {"__init__.py": '"""A package."""\n', "log/__init__.py": '"""A room."""\n'}


@pytest.fixture
def tree(tmp_path: Path) -> Any:
    """Return a function that writes a package and reads its modules."""

    def write(files: dict[str, str]) -> list[Module]:
        for path, text in {**FINE, **files}.items():
            file = tmp_path / "package" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return read(tmp_path / "package")

    return write


def text(offences: Iterable[Offence]) -> list[str]:
    return [offence.text for offence in offences]


def body(lines: int) -> str:
    return "def f():\n" + "    a = 1\n" * lines


CROWD = "class C:\n    '''A class.'''\n"

CASES: list[tuple[rules.Rule, str, str, str]] = [
    (rules.long_modules, "#\n" * 400, "#\n" * 401, "log/a.py:1 has 401 lines; it holds more than one concept"),
    (rules.long_functions, body(60), body(61), "log/a.py:1 f has 61 code lines"),
    (
        rules.crowded_classes,
        CROWD + "".join(f"    a{i}: int\n" for i in range(25)),
        CROWD + "".join(f"    a{i}: int\n" for i in range(26)),
        "log/a.py:1 C has 26 methods and attributes",
    ),
    (rules.undocumented, "'''A module.'''\n", "a = 1\n", "log/a.py:1 has no docstring"),
    (rules.undocumented, "'''A module.'''\n", "'''A module.'''\ndef f(): ...\n", "log/a.py:2 f has no docstring"),
    (
        rules.undocumented,
        "'''A module.'''\nclass C(B):\n    '''A class.'''\n    def m(self): ...\n",
        "'''A module.'''\nclass C:\n    '''A class.'''\n    def m(self): ...\n",
        "log/a.py:4 C.m has no docstring",
    ),
    (rules.questions, "'''Return it.'''\n", "'''What it is.'''\n", 'log/a.py:1 "What it is."'),
    (rules.questions, "'''However.'''\n", "def f():\n    '''Whether it is.'''\n", 'log/a.py:1 "Whether it is."'),
    (rules.vague_names, "founder = a.lost\n", "found = 1\n", "log/a.py:1 found"),
    (rules.vague_names, "def f(of): ...\n", "def f(found): ...\n", "log/a.py:1 found"),
    (rules.vague_names, "f(of=1)\n", "f(found=1)\n", "log/a.py:1 found"),
    (rules.vague_names, "a.of\n", "a.found\n", "log/a.py:1 found"),
    (
        rules.computed_imports,
        "require('wandb')\nself.files.require()\n",
        "import importlib\nimportlib.import_module(name)\n",
        "log/a.py:2 imports a module by a name that is computed",
    ),
    (
        rules.import_circles,
        "from package.log import b\n",
        "def f():\n    from package.log.b import g\n",
        "package.log.a <-> package.log.b",
    ),
    (
        rules.import_circles,
        "import package.log.b\n",
        "require('package.log.b')\n",
        "package.log.a <-> package.log.b",
    ),
]


@pytest.mark.parametrize(("rule", "right", "wrong", "message"), CASES)
def test_a_rule_fails_on_what_breaks_it(tree: Any, rule: rules.Rule, right: str, wrong: str, message: str) -> None:
    back = "import package.log.a\n" if message.endswith("<-> package.log.b") else ""
    others = {"log/b.py": "'''Another.'''\n"}
    assert not text(rule(tree({"log/a.py": right, **others})))
    others["log/b.py"] += back
    assert text(rule(tree({"log/a.py": wrong, **others}))) == [message]


def test_code_lines_leaves_out_docstrings_and_comments(tree: Any) -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    # why\n\n    a = 1\n    return a\n'
    (module,) = (module for module in tree({"log/a.py": source}) if module.path == "log/a.py")
    assert rules.code_lines(module.tree.body[0], source.splitlines()) == 2  # type: ignore[arg-type]


def test_members_are_methods_fields_and_what_is_assigned_to_self(tree: Any) -> None:
    source = """
class C(Base):
    field: int
    plain = 1
    def __init__(self, a):
        self._rows, self.a = a, a
        self.count += 1
        other.b = self.read
        object.__setattr__(self, "set", 1)
    @property
    def rows(self): ...
    class Inner: ...
"""
    (module,) = (module for module in tree({"log/a.py": source}) if module.path == "log/a.py")
    names = rules.members(module.tree.body[0])  # type: ignore[arg-type]
    assert names == {"field", "plain", "__init__", "rows", "a", "count", "set", "Inner"}


IMPORTS = [
    "import wandb",
    "import wandb.sdk as w",
    "from wandb import init",
    "from wandb.sdk import wandb_run",
    "wandb = require('wandb', extra='wandb')",
    "extras.require('wandb.sdk', extra='wandb')",
    "importlib.import_module('wandb')",
    "__import__('wandb')",
    "if TYPE_CHECKING:\n    import wandb",
    "def f():\n    import wandb",
]


@pytest.mark.parametrize("statement", IMPORTS)
def test_a_border_sees_every_way_in(tree: Any, statement: str) -> None:
    modules = tree({"report/sink.py": statement, "log/a.py": statement})
    offences = text(rules.beyond_border(modules, ["wandb"], ["report/"]))
    line = 1 + statement.count("\n")
    assert offences == [f"log/a.py:{line} brings in wandb"]


@pytest.mark.parametrize("statement", ["import wandbox", "wandb.log()", "require(wandb)", "'import wandb'"])
def test_a_border_that_nothing_crosses_is_no_border(tree: Any, statement: str) -> None:
    modules = tree({"report/sink.py": statement})
    assert text(rules.beyond_border(modules, ["wandb"], ["report/"])) == [
        "report/ brings in no wandb; the border says it does"
    ]


def test_relative_imports_are_resolved(tree: Any) -> None:
    modules = tree(
        {"log/a.py": "from . import b\nfrom .b import c\nfrom .. import d\n", "log/__init__.py": "from .a import x\n"}
    )
    names = {module.path: [item.name for item in brought(module)] for module in modules}
    assert names["log/a.py"] == ["package.log.b", "package.log.b.c", "package.d"]
    assert names["log/__init__.py"] == ["package.log.a.x"]


def test_a_name_lies_in_the_longest_module_of_its_own() -> None:
    assert resolve("a.b.c", {"a", "a.b"}) == "a.b"
    assert resolve("ab.c", {"a"}) is None


def test_dead_modules_are_those_that_no_entry_reaches(tree: Any) -> None:
    moved = "from a import renamed\n__getattr__ = renamed(__name__, {})\n"
    modules = tree(
        {
            "log/main.py": "from package.log.used import f\n",
            "log/used.py": "",
            "log/dead.py": "import package.log.also_dead\n",
            "log/also_dead.py": "import package.log.dead\n",
            "log/former.py": moved + "def f():\n    warn_renamed('f', 'g')\n",
            "log/half.py": moved + "value = 1\n",
        }
    )
    offences = rules.dead_modules(modules, ["package.log.main"])
    assert [line.split(":")[0] for line in text(offences)] == ["log/also_dead.py", "log/dead.py", "log/half.py"]
    assert not text(rules.dead_modules(modules, ["package.log.main", "package.log.dead", "package.log.half"]))


def test_circles_are_whole_and_apart() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_an_ignored_import_must_be_there(tree: Any) -> None:
    modules = tree({"log/a.py": "import package.log.b\n", "log/b.py": "import package.log.a\n"})
    assert not text(rules.import_circles(modules, [("package.log.a", "package.log.b")]))
    with pytest.raises(KeyError):
        list(rules.import_circles(modules, [("package.log.a", "package.log")]))


def test_tests_outside_a_room_are_seen(tmp_path: Path) -> None:
    for path in ("log/test_a.py", "docs/test_b.py", "test_scores.py", "cases.py", "test_log.py", "gone/cases.py"):
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.touch()
    offences = rules.misplaced_tests(tmp_path, ["log/", "record/", "scores"], ["bare"])
    assert text(offences) == [
        "tests of docs, which is no room",
        "test_log.py belongs into the folder log",
        "record/ has no folder of tests",
        "bare is said to hold tests and does not",
    ]


def test_the_list_of_what_is_unfinished_can_only_get_shorter() -> None:
    offences = [Offence("log", "log/a.py:1 found")]
    hold_outside(offences, ["log"])
    with pytest.raises(AssertionError, match=r"log/a\.py:1 found"):
        hold_outside(offences, [])
    with pytest.raises(AssertionError, match=r"\['record'\] hold the rule now"):
        hold_outside(offences, ["log", "record"])


@pytest.mark.parametrize(
    ("source", "message"),
    [("import omegaconf", "omegaconf"), ("import random; random.seed(3)", "seeds moved")],
)
def test_what_importing_costs_is_seen(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "lightning_sgdinf.py").write_text(source)
    assert message in rules.import_costs(tmp_path, before="torch")


def test_settings_that_name_what_is_gone_are_seen(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "module.py").touch()
    assert rules.missing_paths(tmp_path, ["there", "module", "module.py", "gone"]) == ["gone"]


def test_bounds_that_are_not_tried_are_seen() -> None:
    requirements = ["a>=1.2", "b>=1.20,!=1.21", "c>=2", "extra[more]", "d>=1"]
    assert list(rules.bounds_apart(requirements, ["# a==3", "a==1.2.0", "b==1.2", "c==2.0.0", "e==1"])) == [
        "b: from 1.20, tried with 1.2",
        "d: from 1, tried with None",
        "e: from None, tried with 1",
    ]


def test_words_that_do_not_belong_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one\nTO" + "DO: two\nsee STY" + "LE.md\nTODOS\n")
    (tmp_path / "a.png").write_text("TO" + "DO")
    assert list(rules.foreign_words(tmp_path, ["a.md", "a.png", "gone.md"])) == ["a.md:2", "a.md:3"]


WRONG_IMPORTS = {
    "Imports go one way": ("errors.py", "lightning_sgdinf.tasks"),
    "No circle, at the top or inside a room": ("kernels/intercept.py", "lightning_sgdinf.kernels.attention"),
    "Recording and replay never meet but in the log": ("replay/host.py", "lightning_sgdinf.record"),
    "The recorder knows nothing of the replay and of the adjoint": ("record/patches.py", "lightning_sgdinf.replay"),
    "The replay knows nothing of the adjoint": ("replay/host.py", "lightning_sgdinf.adjoint"),
    "The kernels import nothing of the project": ("kernels/relu.py", "lightning_sgdinf.errors"),
    "Mathematics knows nothing of Lightning": ("adjoint/step.py", "lightning"),
    "The log alone knows HDF5": ("record/ranks.py", "h5py"),
}


def broken(folder: Path, *options: str) -> Sequence[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    return re.findall(r"^(.+) BROKEN", done.stdout, re.M)


@pytest.mark.parametrize("name", WRONG_IMPORTS)
def test_each_contract_sees_the_import_it_is_for(tmp_path: Path, repository: Path, name: str) -> None:
    shutil.copytree(
        repository / "lightning_sgdinf", tmp_path / "lightning_sgdinf", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(repository / "pyproject.toml", tmp_path)
    importer, imported = WRONG_IMPORTS[name]
    with (tmp_path / "lightning_sgdinf" / importer).open("a") as file:
        file.write(f"\nimport {imported}\n")
    assert name in broken(tmp_path)


def test_every_contract_has_its_wrong_import() -> None:
    assert {contract["name"] for contract in SETTINGS["tool"]["importlinter"]["contracts"]} == set(WRONG_IMPORTS)
