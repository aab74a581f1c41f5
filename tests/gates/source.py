"""The package as text: its modules, what each of them brings in, and which of them reach which."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LOADERS = frozenset({"require", "import_module", "__import__"})
"""Functions that import the module named by their first argument."""


class Module(NamedTuple):
    """A file of the package."""

    name: str
    """Dotted, e.g. ``lightning_sgdinf.log.reader``; that of a folder for its ``__init__``."""
    path: str
    """Below the package, e.g. ``log/reader.py``."""
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """Return the folder or the file at the top of the package, e.g. ``log`` or ``scores``."""
        return self.path.partition("/")[0].removesuffix(".py")


class Brought(NamedTuple):
    """A module that a file brings in."""

    name: str
    """Dotted; empty where it is computed when the program runs."""
    line: int


class Offence(NamedTuple):
    """A place that breaks a rule."""

    room: str
    text: str


def read(package: Path) -> list[Module]:
    """Return every module below a package's folder."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        inner = path.relative_to(package)
        parts = [package.name, *inner.with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules.append(Module(name, inner.as_posix(), text, ast.parse(text)))
    return modules


def offence(module: Module, line: int, text: str) -> Offence:
    """Return an offence that names its file and line."""
    return Offence(module.room, f"{module.path}:{line} {text}")


def called(node: ast.Call) -> str:
    """Return the last name of what is called: ``require`` of ``require(...)`` and of ``extras.require(...)``."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def brought(module: Module) -> Iterator[Brought]:
    """Yield what a file brings in, wherever in the file: by statement, by ``require`` or by ``import_module``.

    ``from a import b`` brings in ``a.b``, be it a module or a name.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Brought(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = _home(module, node)
            yield from (Brought(f"{home}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in LOADERS and node.args:
            name = node.args[0]
            known = isinstance(name, ast.Constant) and isinstance(name.value, str)
            yield Brought(name.value if known else "", node.lineno)  # type: ignore[union-attr]


def _home(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    above = module.name.split(".")
    keep = len(above) - node.level + module.path.endswith("__init__.py")
    return ".".join([*above[:keep], *([node.module] if node.module else [])])


def resolve(name: str, known: Iterable[str]) -> str | None:
    """Return the module that a dotted name lies in, the longest one; None if it is none of those known."""
    parts = name.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in known), None)


def imports(modules: Sequence[Module]) -> dict[str, set[str]]:
    """Return for each module those of the package that it brings in."""
    known = {module.name for module in modules}
    by_name = {module.name: {resolve(item.name, known) for item in brought(module)} for module in modules}
    return {name: {other for other in others if other and other != name} for name, others in by_name.items()}


def reachable(graph: Mapping[str, set[str]], entries: Iterable[str]) -> set[str]:
    """Return the modules that running the entries can import; with a module come the folders around it."""
    waiting, reached = list(entries), set()
    while waiting:
        name = waiting.pop()
        if name in graph and name not in reached:
            reached.add(name)
            parent = name.rpartition(".")[0]
            waiting += [*graph[name], *([parent] if parent else [])]
    return reached


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules each of which reaches every other one, in alphabetical order."""
    onwards = {name: _onwards(graph, name) for name in graph}
    rings = {tuple(sorted(other for other in onwards[name] if name in onwards[other])) for name in graph}
    return [list(ring) for ring in sorted(rings) if ring]


def _onwards(graph: Mapping[str, set[str]], start: str) -> set[str]:
    waiting, reached = list(graph[start]), set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph.get(name, ())
    return reached
