"""The pages hold what they promise: links lead somewhere, code is valid, imports exist, commands compose."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from lightning_sgdinf.tasks.configuration import checked, conf_dir

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a page in one of the languages."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield body


def commands() -> Iterator[str]:
    """Every ``sgdinf`` command line of the pages, without its comment."""
    for page in PAGES:
        for block in blocks(page, "", "sh", "bash", "console", "shell"):
            for line in block.splitlines():
                line = line.strip().removeprefix("$ ")
                if line.split(" ")[0] == "sgdinf":
                    yield line.split("  #")[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_is_valid_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_sgdinf"):
                module = importlib.import_module(node.module or "")
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)


def test_there_are_commands_to_check() -> None:
    assert list(commands())


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_compose(command: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(command)[1:] if not word.startswith(("-", "hydra")) and "..." not in word]
    choices = [[f"{key}={value}" for value in values.split(",")] if "[" not in values else [f"{key}={values}"]
               for key, _, values in (word.partition("=") for word in words)]  # fmt: skip
    for overrides in itertools.islice(itertools.product(*choices), 8):
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            checked(compose("config", [f"output_dir={tmp_path}", *overrides]))
