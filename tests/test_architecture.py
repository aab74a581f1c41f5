"""The interfaces on the page of the architecture are those of the code: classes, methods, arguments, fields.

A block is compared if the line before it says ``<!-- not run: interfaces of <module> -->``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_sgdinf import scores

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
BLOCK = re.compile(r"^<!-- not run: interfaces of (\S+) -->\n```python\n(.*?)^```", re.M | re.S)
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))

Argument = tuple[str, str, Any]
"""Kind, name and default of an argument."""


def differences(module: ModuleType, code: str) -> Iterator[str]:
    """Yield the respects in which a block differs from the module it describes."""
    for node in ast.parse(code).body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield f"line {node.lineno} is neither a class nor a function"
        elif not hasattr(module, node.name):
            yield f"{module.__name__} has no {node.name}"
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                yield from (f"{node.name}.{text}" for text in of_member(getattr(module, node.name), member, module))
        else:
            yield from of_function(getattr(module, node.name), node, module)


def of_member(kind: type, member: ast.stmt, module: ModuleType) -> Iterator[str]:
    if isinstance(member, ast.FunctionDef):
        function = inspect.getattr_static(kind, member.name, None)
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function):
            yield from of_function(function, member, module)
        else:
            yield f"{member.name} is no method"
    elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
        if member.target.id not in fields(kind):
            yield f"{member.target.id} is no attribute"
    else:
        yield f"line {member.lineno} is neither a method nor an attribute"


def fields(kind: type) -> set[str]:
    """Return the names of properties, annotated fields and what methods assign to ``self``."""
    names: set[str] = set()
    for base in kind.__mro__[:-1]:
        names |= {*getattr(base, "__annotations__", ())}
        names |= {name for name, value in vars(base).items() if not inspect.isroutine(value)}
        if base.__module__.startswith("lightning_sgdinf"):
            tree = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base))))
            names |= {node.attr for node in tree if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return names


def of_function(function: Any, node: ast.FunctionDef, module: ModuleType) -> Iterator[str]:
    shown, real = shown_arguments(node.args, module), real_arguments(function)
    if [argument[:2] for argument in shown] != [argument[:2] for argument in real]:
        yield f"{node.name} takes {inspect.signature(function)}, not ({ast.unparse(node.args)})"
        return
    for (_, name, on_page), (_, _, in_code) in zip(shown, real, strict=True):
        if on_page is not ... and repr(on_page) != repr(in_code):
            yield f"{node.name}({name}) is {in_code!r} if not given, not {on_page!r}"


def shown_arguments(arguments: ast.arguments, module: ModuleType) -> list[Argument]:
    """Return the arguments as written, their defaults evaluated in the module; ``...`` stands for any default."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    result = [("plain", arg.arg, value(default, module)) for arg, default in zip(plain, defaults, strict=True)]
    if arguments.vararg:
        result.append(("*", arguments.vararg.arg, value(None, module)))
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        result.append(("keyword", arg.arg, value(default, module)))
    if arguments.kwarg:
        result.append(("**", arguments.kwarg.arg, value(None, module)))
    return result


def value(default: ast.expr | None, module: ModuleType) -> Any:
    if default is None:
        return inspect.Parameter.empty
    return eval(compile(ast.Expression(default), "<page>", "eval"), vars(module))


def real_arguments(function: Any) -> list[Argument]:
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "plain",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "plain",
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return [(kinds[p.kind], p.name, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("module", "code"), BLOCKS, ids=[module for module, _ in BLOCKS])
def test_interfaces_are_those_of_the_code(module: str, code: str) -> None:
    assert not list(differences(importlib.import_module(module), code))


def test_no_interface_is_left_out() -> None:
    modules = [module for module, _ in BLOCKS]
    assert {"lightning_sgdinf.log", "lightning_sgdinf.record", "lightning_sgdinf.scores"} <= set(modules)
    shown = re.findall(r"^```python\n", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(shown) == len(modules), "a block of Python does not say which module it shows"


RIGHT = """
class Scores:
    values: Tensor
    def harm(self, query: int | str = 0) -> Tensor: ...
    def order(self, query=...): ...
    @classmethod
    def load(cls, path): ...
"""

WRONG = {
    "class Score: ...": "lightning_sgdinf.scores has no Score",
    "x = 1": "line 1 is neither a class nor a function",
    "class Scores:\n    value: Tensor": "Scores.value is no attribute",
    "class Scores:\n    harm: Tensor": "Scores.harm is no attribute",
    "class Scores:\n    def values(self): ...": "Scores.values is no method",
    "class Scores:\n    def harms(self): ...": "Scores.harms is no method",
    "class Scores:\n    pass": "Scores.line 2 is neither a method nor an attribute",
    "class Scores:\n    def harm(self, q=0): ...": "Scores.harm takes (self, query: 'int | str' = 0)",
    "class Scores:\n    def harm(self, *, query=0): ...": "Scores.harm takes (self, query: 'int | str' = 0)",
    "class Scores:\n    def harm(self, query=0, **more): ...": "Scores.harm takes (self, query: 'int | str' = 0)",
    "class Scores:\n    def harm(self): ...": "Scores.harm takes (self, query: 'int | str' = 0)",
    "class Scores:\n    def harm(self, query=1): ...": "Scores.harm(query) is 0 if not given, not 1",
    "class Scores:\n    def harm(self, query): ...": "Scores.harm(query) is 0 if not given, not <class",
    "def require(module, extra): ...": "require takes (module: 'str', *, extra: 'str')",
}


def test_a_block_that_is_right_passes() -> None:
    assert not list(differences(scores, RIGHT))


@pytest.mark.parametrize("code", WRONG)
def test_a_block_that_is_wrong_fails(code: str) -> None:
    (difference,) = differences(scores, code)
    assert difference.startswith(WRONG[code])
