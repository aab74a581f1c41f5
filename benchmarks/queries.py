"""What many queries in one walk cost, per query, as a multiple of the training it retraces.

    python benchmarks/queries.py [--case MnistNet ...] [--rounds 3] [--quick]

A query is the loss of one validation example. One replay without checks answers 1, 16 and 64 of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cases
from cases import Case, Seconds

from lightning_sgdinf.query import ExampleLoss
from lightning_sgdinf.runner import InfluenceRunner

COUNTS = (1, 16, 64)
STEPS = {"LogReg": 100, "MLP": 80, "MnistNet": 12}


def row(case: Case, directory: Path, *, rounds: int, quick: bool) -> tuple[str, ...]:
    """One line of the table."""
    case = replace(case, steps=STEPS[case.name])
    data, log = case.data(quick=quick), directory / f"{case.name}.tlog"
    cases.fit(case, data, log=log)

    def replay(queries: int) -> Seconds:
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
        query = ExampleLoss(range(queries))
        return cases.timed(lambda: runner.run(case.module(), datamodule=data, log=log, query=query))

    actions: dict[str, Callable[[], Seconds]] = {"fit": lambda: cases.fit(case, data)}
    actions |= {str(count): lambda count=count: replay(count) for count in COUNTS}
    found = cases.interleaved(actions, rounds)
    cells = []
    for count in COUNTS:
        cpu, wall = cases.ratio(found[str(count)], found["fit"])
        cells.append(f"{cpu / count:.2f} ({wall / count:.2f})")
    return case.name, *cells


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    cases.quiet()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ["LogReg"] if chosen.quick else chosen.case:
            rounds = 1 if chosen.quick else chosen.rounds
            rows.append(row(cases.CASES[name], Path(directory), rounds=rounds, quick=chosen.quick))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    found = cases.table(("model", *(f"{c} in one walk" for c in COUNTS)), rows)
    print(found)
    return found


if __name__ == "__main__":
    main()
