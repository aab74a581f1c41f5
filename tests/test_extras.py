from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lightning_sgdinf.errors import MissingExtraError
from lightning_sgdinf.extras import require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
DISTRIBUTIONS = {package: names[0].lower() for package, names in metadata.packages_distributions().items()}


def required(path: Path) -> dict[str, str]:
    """Every module that a file asks for by `require`, with the extra that it names."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"
    ]
    return {ast.literal_eval(call.args[0]): ast.literal_eval(call.keywords[0].value) for call in calls}


REQUIRED = {path: required(path) for path in sorted((ROOT / "lightning_sgdinf").rglob("*.py"))}


def test_a_module_that_is_there_is_returned() -> None:
    assert require("json.decoder", extra="cli") is sys.modules["json.decoder"]


def test_a_missing_one_is_answered_with_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="wandb")
    assert str(caught.value) == (
        'this needs no_such_package, which is not installed; install it with: pip install "lightning-sgdinf[wandb]"'
    )
    assert isinstance(caught.value, ImportError)


def test_a_package_that_itself_lacks_another_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package_of_a_test.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        require("broken_package_of_a_test", extra="cli")
    assert not isinstance(caught.value, MissingExtraError)


@pytest.mark.parametrize(
    ("path", "module", "extra"),
    [
        pytest.param(path, module, extra, id=f"{path.stem}-{module}")
        for path, modules in REQUIRED.items()
        for module, extra in modules.items()
    ],
)
def test_the_extra_that_is_named_brings_the_module(path: Path, module: str, extra: str) -> None:
    package = module.partition(".")[0]
    if package == "lightning_sgdinf":  # a part of this package: the extra is one that this part names itself
        inside = [modules for file, modules in REQUIRED.items() if file.parent.name == module.split(".")[1]]
        named = {extra for modules in inside for extra in modules.values()} or {""}  # "" where it needs none
        assert extra in named
        return
    brought = {re.split(r"[\[<>=;~ ]", requirement)[0].lower() for requirement in EXTRAS[extra]}
    assert DISTRIBUTIONS.get(package, package) in brought, f"{path}: {extra} does not list what brings {module}"


def test_calls_are_found() -> None:
    assert len([module for modules in REQUIRED.values() for module in modules]) > 30
