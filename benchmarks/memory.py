"""Peak memory of a replay, as a multiple of that of training.

    python benchmarks/memory.py [--quick]

Fit and replay run in processes of their own. Each builds model and data, does one step of plain training on a batch of
one so that torch's libraries are loaded, then notes its resident set; what the largest one exceeds that by is what
the fit or the replay needed. The resident set counts what an allocator keeps, not only what tensors hold.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cases
from torch import nn

from lightning_sgdinf.runner import InfluenceRunner

STEPS = {"LogReg": 100, "MnistNet": 12, "CifarNet": 4}


def status(field: str) -> float:
    """A line of this process's status as the kernel keeps it (Linux), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def child(name: str, what: str, log: Path) -> None:
    """Fit, record or replay, and print by how many MiB the peak grew."""
    cases.quiet()
    case = replace(cases.CASES[name], steps=STEPS[name])
    data, module = case.data(), case.module()
    images, labels = data.train_set[0]
    nn.functional.cross_entropy(module.eval()(images[None]), labels[None]).backward()
    module.train()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set counts anew: reading the data was larger
    before = status("VmRSS")
    if what == "replay":
        InfluenceRunner(accelerator="cpu", progress=False).run(case.module(), datamodule=data, log=log)
    else:
        cases.fit(case, data, log=log if what == "record" else None)
    print(status("VmHWM") - before)


def grown(name: str, what: str, log: Path) -> float:
    """The same, from a fresh process."""
    command = [sys.executable, __file__, "--child", name, what, str(log)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        child(chosen.child[0], chosen.child[1], Path(chosen.child[2]))
        return ""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ["LogReg"] if chosen.quick else STEPS:
            log = Path(directory) / f"{name}.tlog"
            training, _, replay = (grown(name, what, log) for what in ("fit", "record", "replay"))
            ratio = f"{replay / training:.1f}" if training else "-"
            rows.append((name, f"{training:.0f} MiB", f"{replay:.0f} MiB", ratio))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    found = cases.table(("model", "fit", "replay, fast certificate", "ratio"), rows)
    print(found)
    return found


if __name__ == "__main__":
    main()
