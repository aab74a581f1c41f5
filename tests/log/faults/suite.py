"""Faults of all kinds, done to logs on purpose, and a count of what was lost.

    python -m tests.log.faults.suite [--short] [--share 1] [--seed 0] [--only kills ...]

Run by itself it prints a table and ends with 1 if anything that had been flushed was lost, or if anything wrong was
read. Everything happens in children of this process, so that a crash of the interpreter is a result like any other.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tests.log.faults.access import read_only, second_writers
from tests.log.faults.crafted import crafted
from tests.log.faults.damage import files, flips
from tests.log.faults.disks import dying_threads, failing_calls, full_disks
from tests.log.faults.interrupts import interrupts
from tests.log.faults.kills import kills
from tests.log.faults.prefixes import prefixes
from tests.log.faults.seals import filling_seals
from tests.log.faults.syscalls import failing_system_calls
from tests.log.faults.tally import Tally

CAMPAIGNS: dict[str, tuple[Callable[..., Tally | list[Tally]], float, float]] = {
    "kills": (kills, 5, 600),
    "prefixes": (prefixes, 0.006, 0.6),
    "flips": (flips, 15, 1500),
    "files": (files, 0.2, 1.0),
    "crafted": (crafted, 50, 2000),
    "second_writers": (second_writers, 1, 5),
    "full_disks": (full_disks, 2, 60),
    "failing_calls": (failing_calls, 0.01, 0.5),
    "failing_system_calls": (failing_system_calls, 0.0002, 0.25),
    "filling_seals": (filling_seals, 0, 0.2),
    "interrupts": (interrupts, 0, 0.15),
    "dying_threads": (dying_threads, 2, 40),
    "read_only": (read_only, 1, 5),
}
"""Name to function, and its amount in the short version, where 0 leaves it out, and in the long one."""


MEMORY = "/dev/shm"  # no disk has to be waited for; what the power takes is simulated


def run(names: list[str], *, short: bool, seed: int, share: float = 1) -> list[Tally]:
    """Do campaigns one after another, of the long version a share."""
    collected: list[Tally] = []
    for name in names:
        campaign, few, many = CAMPAIGNS[name]
        if short and not few:
            continue
        place = Path(tempfile.mkdtemp(prefix=f"faults-{name}-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        os.chmod(place, 0o755)
        try:
            amount = few if short else many * share if isinstance(many, float) else max(1, round(many * share))
            tallies = campaign(amount, np.random.default_rng(seed), place)
            collected += tallies if isinstance(tallies, list) else [tallies]
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return collected


def table(tallies: list[Tally]) -> str:
    """In Markdown."""
    rows = ["| fault | times | lost or wrong | |", "|---|---|---|---|"]
    for t in tallies:
        said = t.remark or (f"{t.noticed} noticed, {t.harmless} harmless" if t.noticed or t.harmless else "")
        rows.append(f"| {t.name} | {t.faults} | {len(t.lost)} | {said} |")
    rows.append(f"| all | {sum(t.faults for t in tallies)} | {sum(len(t.lost) for t in tallies)} | |")
    return "\n".join(rows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--share", type=float, default=1, help="of the long version; other seeds give other faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    tallies = run(chosen.only, short=chosen.short, seed=chosen.seed, share=chosen.share)
    print(json.dumps([asdict(t) for t in tallies]) if chosen.json else table(tallies))
    for tally in tallies:
        for line in tally.lost[:20]:
            print(f"{tally.name}: {line}", file=sys.stderr)
    return int(any(t.lost for t in tallies))


if __name__ == "__main__":
    sys.exit(main())
