"""Rules about the source itself: sizes, borders, words, and settings that name what exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_sgdinf"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 400

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, source: list[str]) -> int:
    """Lines of the body that are neither docstring, comment nor blank."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    lines = source[body[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every module a file imports, wherever in the file."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node


def test_modules_are_found() -> None:
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_sizes(path: Path) -> None:
    source = path.read_text(encoding="utf-8").splitlines()
    assert len(source) <= MAX_MODULE_LINES, f"{name(path)} has {len(source)} lines; it holds more than one concept"
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = code_lines(node, source)
            assert lines <= MAX_FUNCTION_LINES, f"{name(path)}:{node.lineno} {node.name} has {lines} code lines"


def test_code_lines_leaves_out_docstrings_and_comments() -> None:
    text = 'def f():\n    """One.\n\n    Two.\n    """\n    # why\n\n    a = 1\n    return a\n'
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert code_lines(function, text.splitlines()) == 2


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = parse(path)
    missing = [] if ast.get_docstring(tree) is not None else ["the module"]
    overriding = {"setUp", "forward"}
    for node in public(tree.body):
        if ast.get_docstring(node) is None:
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            inherits = bool(node.bases)  # an override inherits its docstring
            missing += [
                f"{node.name}.{member.name}"
                for member in public(node.body)
                if ast.get_docstring(member) is None and not inherits and member.name not in overriding
            ]
    assert not missing, f"{name(path)}: no docstring on {', '.join(missing)}"


def importers(library: str) -> set[str]:
    return {name(path) for path in MODULES if library in imported(path)}


def test_hdf5_is_known_to_the_log_only() -> None:
    found = importers("h5py")
    assert found
    assert all(path.startswith("lightning_sgdinf/log/") for path in found), found


def test_hydra_is_known_to_the_tasks_only() -> None:
    found = importers("hydra") | importers("omegaconf")
    assert found
    assert all(path.startswith("lightning_sgdinf/tasks/") for path in found), found


def test_wandb_is_known_to_one_file_of_the_report_only() -> None:
    found = importers("wandb")
    assert len(found) <= 1
    assert all(path.startswith("lightning_sgdinf/report/") for path in found), found


def test_lightning_stays_where_it_belongs() -> None:
    replay = ("replay/lightning_host", "replay/dataloaders")
    allowed = ("record/", *replay, "runner", "fit_end", "zoo/", "studies/", "testing/")
    found = importers("lightning") | importers("pytorch_lightning")
    assert all(path.removeprefix("lightning_sgdinf/").startswith(allowed) for path in found), found


def test_importing_the_package_is_light_and_silent() -> None:
    script = (
        "import sys, random, torch, lightning\n"
        "before, known = (torch.get_rng_state(), random.getstate()), set(sys.modules)\n"
        "import lightning_sgdinf\n"
        "assert [getattr(lightning_sgdinf, name) for name in dir(lightning_sgdinf)]\n"  # else loaded when first used
        "assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate(), 'seeds moved'\n"
        "heavy = {'hydra', 'omegaconf', 'wandb', 'matplotlib', 'pandas', 'sklearn', 'scipy', 'rich', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules) - known))\n"  # what Lightning itself brings along does not count
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def paths_in_settings() -> Iterator[str]:
    """Every string of pyproject.toml that means a file, a folder or a module of this repository."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tool = settings["tool"]
    yield settings["project"]["readme"]
    yield from tool["hatch"]["build"]["targets"]["wheel"]["packages"]
    yield from tool["hatch"]["build"]["targets"]["wheel"]["force-include"]
    yield from tool["hatch"]["build"]["targets"]["sdist"]["include"]
    yield from tool["pyright"]["include"]
    yield from tool["pytest"]["ini_options"]["testpaths"]
    yield from (pattern.split("*")[0] for pattern in tool["ruff"]["lint"]["per-file-ignores"])
    for target in [*settings["project"]["scripts"].values(), *entry_points(settings)]:
        yield target.split(":")[0].replace(".", "/") + ".py"
    for contract in tool["importlinter"]["contracts"]:
        named = [*contract.get("source_modules", []), *contract.get("forbidden_modules", [])]
        yield from (module.replace(".", "/") for module in named if module.startswith("lightning_sgdinf"))
        for layer in contract.get("layers", []):
            yield from (f"lightning_sgdinf/{module}" for module in re.findall(r"\w+", layer))


def entry_points(settings: dict) -> Iterator[str]:
    for group in settings["project"].get("entry-points", {}).values():
        yield from group.values()


@pytest.mark.parametrize("path", sorted(set(paths_in_settings())))
def test_settings_name_what_exists(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), f"pyproject.toml names {path}, which is not there"


def test_repository_speaks_of_the_product_alone() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    plans = "|".join(["DES" + "IGN", "METH" + "ODS", "HOST-" + "FACTS", "STOR" + "AGE", "PE" + "ERS", "ST" + "YLE"])
    words = re.compile(
        rf"/wo{''}rk/|\b(?:{plans})\.md|\bTO{''}DO\b|\bFIX{''}ME\b|pypi\.{''}org|files\.python{''}hosted"
    )
    found = []
    for path in tracked:
        file = ROOT / path
        if not file.is_file() or file.suffix in {".png", ".h5", ".npz", ".gz", ".svg"}:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if words.search(line):
                found.append(f"{path}:{number}")
    assert not found, f"words that do not belong here: {found}"
