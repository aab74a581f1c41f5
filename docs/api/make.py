"""Write README.md beside this file: every public name with the first sentence of its docstring.

python docs/api/make.py
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

PUBLIC = (
    "lightning_sgdinf",
    "lightning_sgdinf.query",
    "lightning_sgdinf.estimators",
    "lightning_sgdinf.baselines",
    "lightning_sgdinf.cleansing",
    "lightning_sgdinf.evaluation",
    "lightning_sgdinf.report",
    "lightning_sgdinf.log",
    "lightning_sgdinf.testing",
    "lightning_sgdinf.errors",
)


def public_names(module: ModuleType) -> dict[str, object]:
    """What a module offers: its own public classes and functions, or what its package re-exports."""
    package = module.__name__
    found = {
        name: value
        for name, value in ((name, getattr(module, name)) for name in dir(module))
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and str(getattr(value, "__module__", "")).startswith(package)
    }
    return dict(sorted(found.items()))


def page() -> str:
    """The page's text."""
    lines = ["# Public names", "", "Written by `python docs/api/make.py` from the docstrings, which say more.", ""]
    for name in PUBLIC:
        lines += [f"## `{name}`", "", "| name | what it is |", "| --- | --- |"]
        for public, value in public_names(importlib.import_module(name)).items():
            text = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{public}` | {text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("README.md").write_text(page())
