"""Run every benchmark and write its figures down.

    python benchmarks/run.py [--quick] [--only replay memory ...] [--output docs/results]

One after another, each in a process of its own, so that they do not disturb each other. ``--quick`` only tests that
they run and writes nothing. Parts of the pages whose benchmark was not run are kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "results"

BENCHMARKS: Mapping[str, tuple[str, list[str]]] = {
    "replay": ("Replay against the training it retraces", []),
    "reference_loop": ("The per-example loop against replay", []),
    "queries": ("Several queries in one walk", []),
    "memory": ("Peak memory", []),
    "certificate_cost": ("What the default certificate costs", []),
    "truth": ("Counterfactual truth, one training after another against all at once", []),
    "recording": ("Recording", []),
    "storage": ("Storage", []),
}
"""Script name to heading and arguments."""

ON_STORAGE_PAGE = ("recording", "storage")
"""What is on the page ``storage.md``; the rest is on ``performance.md``."""


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread"
    )


def output_of(name: str, *, quick: bool) -> str:
    """What a benchmark prints: its tables if it prints any, all of it otherwise."""
    options = ["--quick"] if quick else BENCHMARKS[name][1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    tables = re.findall(r"(?:^\| .*\n)+", text, re.MULTILINE)
    return "\n".join(tables).rstrip() if tables else f"```\n{text.rstrip()}\n```"


def section(page: str, name: str, body: str) -> str:
    """The page with one benchmark's part replaced."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    fresh = f"{start}\nMeasured by `python benchmarks/{name}.py` on {machine()}.\n\n{body}\n{end}"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: fresh, page)
    return f"{page.rstrip()}\n\n## {BENCHMARKS[name][0]}\n\n{fresh}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=PAGES)
    chosen = parser.parse_args(arguments)
    for name in chosen.only:
        body = output_of(name, quick=chosen.quick)
        print(f"## {BENCHMARKS[name][0]}\n\n{body}\n", flush=True)
        if not chosen.quick:
            title = "Storage" if name in ON_STORAGE_PAGE else "Performance"
            path = chosen.output / f"{title.lower()}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(section(_read(path) or f"# {title}\n", name, body), encoding="utf-8")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
