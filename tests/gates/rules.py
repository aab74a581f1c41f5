"""The rules: each takes the modules of a package and yields the places that break it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gates.source import Module, Offence, brought, called, circles, imports, offence, reachable

MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 400
MAX_MEMBERS = 25
QUESTIONS = re.compile(r"\W*(What|How|Whether|Where|Which)\b")

Rule = Callable[[Sequence[Module]], Iterator[Offence]]
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def long_modules(modules: Sequence[Module]) -> Iterator[Offence]:
    """Yield the modules of more than 400 lines."""
    for module in modules:
        lines = len(module.text.splitlines())
        if lines > MAX_MODULE_LINES:
            yield offence(module, 1, f"has {lines} lines; it holds more than one concept")


def long_functions(modules: Sequence[Module]) -> Iterator[Offence]:
    """Yield the functions of more than 60 lines that are neither docstring, comment nor blank."""
    for module in modules:
        source = module.text.splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, Function) and (lines := code_lines(node, source)) > MAX_FUNCTION_LINES:
                yield offence(module, node.lineno, f"{node.name} has {lines} code lines")


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, source: Sequence[str]) -> int:
    """Return the number of lines of the body that are neither docstring, comment nor blank."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    lines = source[body[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def crowded_classes(modules: Sequence[Module]) -> Iterator[Offence]:
    """Yield the classes of more than 25 members."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and len(names := members(node)) > MAX_MEMBERS:
                yield offence(module, node.lineno, f"{node.name} has {len(names)} methods and attributes")


def members(node: ast.ClassDef) -> set[str]:
    """Return the names of a class that a reader must keep in mind, its own without those it inherits.

    Methods, properties and magic methods, fields and other names of the class's body, and what any of its methods
    assigns to ``self``. A name that is hidden and the one that shows it, ``_rows`` and ``rows``, are one.
    """
    names: set[str] = set()
    for item in node.body:
        if isinstance(item, (*Function, ast.ClassDef)):
            names.add(item.name)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.add(item.target.id)
        elif isinstance(item, ast.Assign):
            names |= {target.id for target in item.targets if isinstance(target, ast.Name)}
        if isinstance(item, Function):
            names |= set(_assigned(item))
    return {name if name.startswith("__") else name.lstrip("_") for name in names}


def _assigned(method: ast.AST) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and called(node) == "__setattr__" and _is_self(node.args[0]):
            yield from (name.value for name in node.args[1:2] if isinstance(name, ast.Constant))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def undocumented(modules: Sequence[Module]) -> Iterator[Offence]:
    """Yield the modules and the public functions, classes and methods without a docstring."""
    overriding = {"setUp", "forward"}
    for module in modules:
        if ast.get_docstring(module.tree) is None:
            yield offence(module, 1, "has no docstring")
        for node in _public(module.tree.body):
            if ast.get_docstring(node) is None:
                yield offence(module, node.lineno, f"{node.name} has no docstring")
            if isinstance(node, ast.ClassDef) and not node.bases:  # an override inherits its docstring
                for member in _public(node.body):
                    if ast.get_docstring(member) is None and member.name not in overriding:
                        yield offence(module, member.lineno, f"{node.name}.{member.name} has no docstring")


def _public(body: Iterable[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, (*Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node


def questions(modules: Sequence[Module]) -> Iterator[Offence]:
    """Yield the docstrings that begin with What, How, Whether, Where or Which rather than say what is done."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.Module, *Function, ast.ClassDef)):
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                if QUESTIONS.match(summary):
                    yield offence(module, getattr(node, "lineno", 1), f'"{summary}"')


def vague_names(modules: Sequence[Module], vague: frozenset[str] = frozenset({"found"})) -> Iterator[Offence]:
    """Yield the variables, arguments, attributes and functions whose name is vague."""
    for module in modules:
        for node in ast.walk(module.tree):
            field = next((f for f in ("id", "arg", "attr", "name", "asname") if getattr(node, f, None) in vague), None)
            if field:
                yield offence(module, getattr(node, "lineno", 1), getattr(node, field))


def importers(modules: Sequence[Module], libraries: Iterable[str]) -> dict[str, int]:
    """Return the paths of the modules that bring in any of the libraries, with the line where they first do."""
    wanted = set(libraries)
    return {
        module.path: min(lines)
        for module in modules
        if (lines := [item.line for item in brought(module) if item.name.partition(".")[0] in wanted])
    }


def beyond_border(modules: Sequence[Module], libraries: Iterable[str], allowed: Sequence[str]) -> Iterator[Offence]:
    """Yield the modules that bring in a library elsewhere than where it belongs, and the places where none does.

    Args:
        modules: The package.
        libraries: Names of one library.
        allowed: Beginnings of the paths that may bring it in.
    """
    places = importers(modules, libraries)
    for module in modules:
        if module.path in places and not module.path.startswith(tuple(allowed)):
            yield offence(module, places[module.path], f"brings in {' or '.join(libraries)}")
    for beginning in allowed:
        if not any(path.startswith(beginning) for path in places):
            yield Offence(beginning, f"{beginning} brings in no {' or '.join(libraries)}; the border says it does")


def computed_imports(modules: Sequence[Module]) -> Iterator[Offence]:
    """Yield the imports whose name is known only when the program runs, which no other rule can see."""
    for module in modules:
        for item in brought(module):
            if not item.name:
                yield offence(module, item.line, "imports a module by a name that is computed")


def dead_modules(modules: Sequence[Module], entries: Iterable[str]) -> Iterator[Offence]:
    """Yield the modules that nothing imports, starting from the entries, but for the former places of names."""
    reached = reachable(imports(modules), entries)
    for module in modules:
        if module.name not in reached and not forwards(module):
            yield offence(module, 1, "is imported by nothing that can be run")


def forwards(module: Module) -> bool:
    """Return whether a module holds nothing but names that have moved, each of which says so when it is used."""
    rest = [node for node in module.tree.body if not isinstance(node, (ast.ImportFrom, ast.Expr))]
    warns = [{called(call) for call in ast.walk(node) if isinstance(call, ast.Call)} for node in rest]
    return bool(rest) and all(calls & {"renamed", "warn_renamed"} for calls in warns)


def import_circles(modules: Sequence[Module], ignored: Iterable[tuple[str, str]] = ()) -> Iterator[Offence]:
    """Yield the sets of modules that import one another, whether at the top or in a function.

    Args:
        modules: The package.
        ignored: Imports that do not count, as pairs of importer and imported.
    """
    graph = imports(modules)
    for importer, imported in ignored:
        graph[importer].remove(imported)  # one that is gone must not be named
    for circle in circles(graph):
        yield Offence(circle[0].split(".")[1] if "." in circle[0] else "", " <-> ".join(circle))


def misplaced_tests(tests: Path, rooms: Iterable[str], outside: Iterable[str]) -> Iterator[Offence]:
    """Yield the folders and files of tests that are named for no room, and the rooms without a folder of tests.

    Args:
        tests: Folder of the tests. Those of a room lie in a folder of its name; one file, ``test_<room>.py``, will do
            for a room that is a file.
        rooms: Names at the top of the package; folders end with ``/``.
        outside: Names of folders and files of tests that belong to no room.
    """
    folders = {room.removesuffix("/") for room in rooms if room.endswith("/")}
    named = folders | {room for room in rooms if not room.endswith("/")}
    allowed = {*named, *outside}
    there = {path.name for path in tests.iterdir() if any(path.rglob("test_*.py"))}
    loose = {path.stem.removeprefix("test_") for path in tests.glob("test_*.py")}
    for name in sorted((there | loose) - {path.name for path in tests.glob("*.py")}):
        if name not in allowed:
            yield Offence(name, f"tests of {name}, which is no room")
    for name in sorted(loose & folders):
        yield Offence(name, f"test_{name}.py belongs into the folder {name}")
    for name in sorted(folders - there):
        yield Offence(name, f"{name}/ has no folder of tests")
    for name in sorted(set(outside) - there - loose):
        yield Offence(name, f"{name} is said to hold tests and does not")


def import_costs(folder: Path, *, before: str = "torch, lightning") -> str:
    """Return the error or the heavy libraries that ``import lightning_sgdinf`` brings along; empty where there is none.

    Args:
        folder: The folder in which the package lies.
        before: Modules whose imports do not count.
    """
    script = (
        f"import sys, random, {before}\n"
        "before, known = (torch.get_rng_state(), random.getstate()), set(sys.modules)\n"
        "import lightning_sgdinf\n"
        "assert [getattr(lightning_sgdinf, name) for name in dir(lightning_sgdinf)]\n"  # else loaded when first used
        "assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate(), 'seeds moved'\n"
        "heavy = {'hydra', 'omegaconf', 'wandb', 'matplotlib', 'pandas', 'sklearn', 'scipy', 'rich', 'pyarrow'}\n"
        "print(*sorted(heavy & set(sys.modules) - known))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr


def paths_in_settings(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield every string of pyproject.toml that means a file, a folder or a module of this repository."""
    tool, project = settings["tool"], settings["project"]
    build = tool["hatch"]["build"]["targets"]
    yield project["readme"]
    yield from (*build["wheel"]["packages"], *build["wheel"]["force-include"], *build["sdist"]["include"])
    yield from (*tool["pyright"]["include"], *tool["pytest"]["ini_options"]["testpaths"])
    yield from (pattern.split("*")[0] for pattern in tool["ruff"]["lint"]["per-file-ignores"])
    groups = [project["scripts"], *project.get("entry-points", {}).values()]
    yield from (target.split(":")[0].replace(".", "/") for group in groups for target in group.values())
    for contract in tool["importlinter"]["contracts"]:
        ignored = [module for pair in contract.get("ignore_imports", []) for module in pair.split(" -> ")]
        kinds = ("source_modules", "forbidden_modules", "protected_modules", "allowed_importers", "ancestors")
        named = [*ignored, *(module for kind in kinds for module in contract.get(kind, []))]
        yield from (module.partition("*")[0].replace(".", "/") for module in named if module.startswith("lightning_sg"))
        for layer in contract.get("layers", []):
            yield from (f"lightning_sgdinf/{module}" for module in re.findall(r"\w+", layer))


def missing_paths(root: Path, paths: Iterable[str]) -> list[str]:
    """Return the paths that are neither a file, a folder nor a module below the root."""
    return [path for path in paths if not (root / path).exists() and not (root / f"{path}.py").exists()]


def foreign_words(root: Path, files: Iterable[str]) -> Iterator[str]:
    """Yield file and line of the words that speak of plans, places and hosts rather than of the product."""
    plans = "|".join(["DES" + "IGN", "METH" + "ODS", "HOST-" + "FACTS", "STOR" + "AGE", "PE" + "ERS", "ST" + "YLE"])
    words = re.compile(
        rf"/wo{''}rk/|\b(?:{plans})\.md|\bTO{''}DO\b|\bFIX{''}ME\b|pypi\.{''}org|files\.python{''}hosted"
    )
    for name in files:
        file = root / name
        if not file.is_file() or file.suffix in {".png", ".h5", ".npz", ".gz", ".svg"}:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if words.search(line):
                yield f"{name}:{number}"


def bounds_apart(requirements: Iterable[str], pins: Iterable[str]) -> Iterator[str]:
    """Yield the requirements whose lower bound is not the version that is pinned, and the pins of no requirement.

    Args:
        requirements: As ``name>=bound`` with anything after it.
        pins: As ``name==version``; zeros at the end do not matter.
    """
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+?)(?:\.0)*$", "\n".join(pins), re.M))
    bounds = dict(
        match.groups() for text in requirements if (match := re.match(r"([\w-]+)>=([\d.]+?)(?:\.0)*(?![\d.])", text))
    )
    for name in sorted({*pinned, *bounds}):
        if pinned.get(name) != bounds.get(name):
            yield f"{name}: from {bounds.get(name)}, tried with {pinned.get(name)}"
