"""Run every benchmark and write its figures down.

    python benchmarks/run.py [--quick] [--only replay memory ...] [--output docs/results/performance.md]

One after another, each in a process of its own, so that they do not disturb each other. ``--quick`` only tests that
they run and writes nothing. Parts of the page whose benchmark was not run are kept.
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
PAGE = HERE.parent / "docs" / "results" / "performance.md"

BENCHMARKS: Mapping[str, tuple[str, list[str]]] = {
    "replay": ("Replay against the training it retraces", []),
    "reference_loop": ("The per-example loop against replay", []),
    "queries": ("Several queries in one walk", []),
    "memory": ("Peak memory", []),
    "truth": ("Counterfactual truth, one training after another against all at once", []),
    "recording": ("Recording", []),
    "storage": ("Storage", []),
}
"""Script name to heading and arguments."""

QUICK = {"recording": ["--rounds", "1", "--steps", "10"], "storage": ["--steps", "20"]}
"""Arguments of a quick run for scripts without ``--quick``."""


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread"
    )


def output_of(name: str, *, quick: bool) -> str:
    """What a benchmark prints: its table if it prints one, all of it otherwise."""
    options = QUICK.get(name, ["--quick"]) if quick else BENCHMARKS[name][1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    table = [line for line in text.splitlines() if line.startswith("| ")]
    return "\n".join(table) if table else f"```\n{text.rstrip()}\n```"


def section(page: str, name: str, body: str) -> str:
    """The page with one benchmark's part replaced."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    fresh = f"{start}\nMeasured by `python benchmarks/{name}.py` on {machine()}.\n\n{body}\n{end}"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: fresh, page)
    return f"{page.rstrip()}\n\n## {BENCHMARKS[name][0]}\n\n{fresh}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=PAGE)
    chosen = parser.parse_args(arguments)
    for name in chosen.only:
        body = output_of(name, quick=chosen.quick)
        print(f"## {BENCHMARKS[name][0]}\n\n{body}\n", flush=True)
        if not chosen.quick:
            page = _read(chosen.output) or "# Performance\n"
            chosen.output.parent.mkdir(parents=True, exist_ok=True)
            chosen.output.write_text(section(page, name, body), encoding="utf-8")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
