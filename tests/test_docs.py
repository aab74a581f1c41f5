"""The pages hold what they promise: links lead somewhere, imports exist, commands compose, errors have entries."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

import lightning_sgdinf
from lightning_sgdinf import errors
from lightning_sgdinf.tasks.configuration import checked, conf_dir
from lightning_sgdinf.tasks.project import init

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *(p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts)]
SHELL = ("sh", "bash", "console", "shell")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a page in one of the languages."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield body


def lines(page: Path, *languages: str) -> Iterator[list[str]]:
    """Words of every command line in a page's blocks, without comments."""
    for block in blocks(page, *languages):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.split(r"\s{2,}#|\s#\s", line)[0].strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if words:
                yield [words.split(" ")[0], *words.split(" ", 1)[1:]]


def commands() -> Iterator[str]:
    """Every ``sgdinf`` command line of the pages, without its comment."""
    for page in PAGES:
        for word, *rest in lines(page, "", *SHELL):
            if word == "sgdinf":
                yield " ".join([word, *rest])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"\$\$.*?\$\$|^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word, *rest in lines(page, *SHELL):
        words = shlex.split(" ".join(rest))
        assert word in {"make", "pip", "python", "sgdinf", "sgdinf-log", "export", "cd"}, f"an unknown command, {word}"
        if word == "make":
            assert words[0] in targets
        if word == "pip":
            assert not {e for found in re.findall(r"\[([\w,]+)\]", " ".join(rest)) for e in found.split(",")} - set(
                extras
            )
        if word == "python":
            paths = [w for w in words if "/" in w]
            assert all((ROOT / path).exists() for path in paths), paths


def test_there_are_commands_to_check() -> None:
    assert list(commands())


def own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of a folder as ``sgdinf init`` writes it, with the table of the page beside it."""
    assert init([str(folder)]) == 0
    monkeypatch.syspath_prepend(folder)
    for own, page in (("dataset/wine", "dataset/wines"), ("model/wine_net", "model/quality")):
        shutil.copy(folder / "conf" / f"{own}.yaml", folder / "conf" / f"{page}.yaml")
    return folder / "conf"


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_compose(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.split()[1:2] == ["init"]:
        return  # a test of the command runs it
    outside = [f"output_dir={tmp_path}"]  # of a job there are no folder and no sweep to be named for
    if "--config-dir conf " in command:
        command = command.replace("--config-dir conf ", "")
        outside.append(f"hydra.searchpath=[file://{own_folder(tmp_path, monkeypatch)}]")
    words = [word for word in shlex.split(command)[1:] if not word.startswith(("-", "hydra")) and "..." not in word]
    pairs = [word.partition("=")[::2] for word in words]
    if launcher := dict(pairs).get("experiment", "").partition("sweep_")[2]:
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    removed = [key for key, _ in pairs if key.startswith("~")]
    pairs = [(key, values) for key, values in pairs if key not in removed]
    choices = [[f"{key}={v}" for v in ([values] if set(values) & set("[{(") else values.split(","))]
               for key, values in pairs]  # fmt: skip
    outside += (
        ["logger.group=sweep", "logger.job_type=job", "logger.name=run", "logger.tags=[]"]
        if ("logger", "wandb") in pairs
        else []
    )
    for overrides in itertools.islice(itertools.product(*choices), 8):
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            checked(compose("config", [*outside, *overrides, *removed]))


def test_every_error_has_its_entry() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    kinds = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, errors.SgdInfluenceError)}
    assert set(entries) == kinds
    for kind, entry in entries.items():
        for part in ("**What happened**", "**Why**", "**What to do**"):
            assert part in entry, f"{kind} does not say: {part}"


def test_every_example_has_its_row() -> None:
    page = (DOCS / "examples.md").read_text(encoding="utf-8")
    assert not [p.name for p in sorted((ROOT / "examples").glob("[0-9]*.py")) if f"(../examples/{p.name})" not in page]


def test_every_public_name_has_its_page() -> None:
    core = (DOCS / "api" / "core.md").read_text()
    offered = [
        n
        for n in dir(lightning_sgdinf)
        if n[0] != "_" and str(getattr(getattr(lightning_sgdinf, n), "__module__", "")).startswith("lightning_sgdinf")
    ]
    assert "InfluenceRunner" in offered
    assert not [n for n in offered if not re.search(rf":: {n}$|`{n}`", core, re.M)]
    shown = {m for page in (DOCS / "api").glob("*.md") for m in re.findall(r"automodule:: (\S+)", page.read_text())}
    index = (DOCS / "api" / "index.md").read_text()
    assert shown == set(re.findall(r"\[`(lightning_sgdinf[.\w]*)`\]", index))


def test_citation_licence_and_changelog_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"] == lightning_sgdinf.__version__
    assert citation["license"] == project["license"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{project['license']} License")
    assert [reference["year"] for reference in citation["references"]] == [2019]
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heads[0] == "Unreleased" or heads[0] == project["version"]
