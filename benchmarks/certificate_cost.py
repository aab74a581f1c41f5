"""What the default certificate costs: time as a part of the walk's, memory as a multiple of the fit's.

    python benchmarks/certificate_cost.py [--case CifarNet ...] [--rounds 3] [--quick]

A fit, a replay without checks and one with the default certificate run in processes of their own; of several rounds the
median is taken. Times are processor times, memory is how much the resident set grew (see ``memory.py``).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import certificate
from memory import status
from torch import nn

from lightning_sgdinf.runner import InfluenceRunner


def transformer(shape: cases.Shape, classes: int) -> nn.Module:
    """Rows of an image as tokens, one layer."""
    return certificate.Transformer(shape[2], shape[1], classes, "gelu")


CASES: Mapping[str, cases.Case] = {
    **cases.CASES,
    "Transformer": cases.Case("Transformer", transformer, cases.MNIST, 200, 8, "adam"),
}


def child(name: str, what: str, log: Path, *, quick: bool) -> None:
    """Fit, record or replay, and print what it took and what was checked."""
    cases.quiet()
    case = replace(CASES[name], steps=CASES[name].quick_steps) if quick else CASES[name]
    data, module = case.data(), case.module()
    images, labels = data.train_set[0]
    nn.functional.cross_entropy(module.eval()(images[None]), labels[None]).backward()
    module.train()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status("VmRSS"), time.process_time()
    said: dict[str, Any] = {}
    if what in ("fit", "record"):
        cases.fit(case, data, log=log if what == "record" else None)
    else:
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off" if what == "walk" else "fast")
        found = runner.run(case.module(), datamodule=data, log=log).certificate
        trust = None if found is None else found.trust
        if trust is not None:
            said = {"left_out": len(trust.example_ids), "where": trust.where, "at_once": trust.at_once}
    print(json.dumps({"seconds": time.process_time() - began, "mebibytes": status("VmHWM") - before, **said}))


def measured(name: str, what: str, log: Path, *, quick: bool) -> dict[str, Any]:
    """The same, from a fresh process."""
    command = [sys.executable, __file__, "--child", name, what, str(log), *(["--quick"] if quick else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def row(name: str, log: Path, *, rounds: int, quick: bool) -> tuple[str, ...]:
    """A line of the table."""
    measured(name, "record", log, quick=quick)
    found = [{w: measured(name, w, log, quick=quick) for w in ("fit", "walk", "checked")} for _ in range(rounds)]
    middle = lambda what, key: statistics.median(f[what][key] for f in found)  # noqa: E731
    walk, checked = middle("walk", "seconds"), middle("checked", "seconds")
    fit, memory = middle("fit", "mebibytes"), middle("checked", "mebibytes")
    last = found[-1]["checked"]
    return (
        f"{name}, {CASES[name].quick_steps if quick else CASES[name].steps} steps",
        f"{walk:.2f} s",
        f"{statistics.median(f['checked']['seconds'] / f['walk']['seconds'] - 1 for f in found):.0%}",
        f"{checked - walk:.2f} s",
        f"{fit:.0f} MiB",
        f"{middle('walk', 'mebibytes') / max(fit, 1):.1f}",
        f"{memory / max(fit, 1):.1f}",
        f"{last.get('left_out', 0)} of {last.get('where', 'nothing')}",
    )


HEAD = ("run", "walk", "certificate / walk", "certificate", "fit", "walk / fit", "with certificate / fit", "left out")


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=[c for c in CASES if c != "MnistNet, Adam"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        child(chosen.child[0], chosen.child[1], Path(chosen.child[2]), quick=chosen.quick)
        return ""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ["LogReg"] if chosen.quick else chosen.case:
            log = Path(directory) / f"{name}.tlog"
            rows.append(row(name, log, rounds=1 if chosen.quick else chosen.rounds, quick=chosen.quick))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    found = cases.table(HEAD, rows)
    print(found)
    return found


if __name__ == "__main__":
    main()
