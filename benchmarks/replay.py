"""What a replay costs, as a multiple of the training it retraces.

    python benchmarks/replay.py [--case MnistNet ...] [--rounds 3] [--quick]

Each round fits a model by Lightning (without recorder; data loading included), trains it by a plain torch loop, and
replays a recorded fit of it: eager without checks, eager with the fast certificate. The ratio of two times is taken
within a round; the median over rounds is shown. A compiled replay without checks is measured in one round of its own;
the time to compile is not part of the ratio but shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cases
from cases import Case, Seconds

from lightning_sgdinf.adjoint.compiled import CompiledSteps
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores

HEAD = (
    "model",
    "fit, ms/step",
    "replay / fit",
    "with certificate",
    "compiled",
    "replay / torch loop",
    "to compile",
    "compiled = eager to",
)


@contextmanager
def compile_clock(spent: list[Seconds]) -> Iterator[None]:
    """Inside, the times that kernels take to compile are collected."""
    original = CompiledSteps._compile

    def timed(self: Any, *args: Any) -> Any:
        began = Seconds.now()
        try:
            return original(self, *args)
        finally:
            spent.append(Seconds.now() - began)

    CompiledSteps._compile = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        CompiledSteps._compile = original  # type: ignore[method-assign]


class Contest:
    """One model, ready to be fitted and replayed in turn."""

    def __init__(self, case: Case, directory: Path, *, quick: bool) -> None:
        self.case, self.data = case, case.data(quick=quick)
        self.log = directory / f"{case.name.replace(', ', '-')}.tlog"
        cases.fit(case, self.data, log=self.log)
        self.scores: dict[str, Scores] = {}
        self.compiling: list[Seconds] = []

    def replay(self, name: str, **settings: Any) -> Seconds:
        """One replay, without what it spends on compiling."""
        runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
        module, compiling = self.case.module(), []

        def run() -> None:
            self.scores[name] = runner.run(module, datamodule=self.data, log=self.log)

        with compile_clock(compiling):
            whole = cases.timed(run)
        self.compiling += compiling
        for part in compiling:
            whole = whole - part
        return whole

    def actions(self) -> dict[str, Callable[[], Seconds]]:
        """What is timed."""
        return {
            "fit": lambda: cases.fit(self.case, self.data),
            "loop": lambda: cases.bare_loop(self.case, self.data),
            "eager": lambda: self.replay("eager", certificate="off"),
            "certified": lambda: self.replay("certified", certificate="fast"),
        }

    def compiled(self) -> dict[str, Callable[[], Seconds]]:
        """What is timed once only: compiling takes minutes, and is done anew each time."""
        return {
            "fit": lambda: cases.fit(self.case, self.data),
            "compiled": lambda: self.replay("compiled", certificate="off", compile=True),
        }

    def row(self, rounds: int) -> tuple[str, ...]:
        """One line of the table."""
        found = cases.interleaved(self.actions(), rounds)
        once = cases.interleaved(self.compiled(), 1)
        steps = len(self.data.train_set) // self.case.batch_size
        eager, compiled = self.scores["eager"].values, self.scores["compiled"].values
        certificate = self.scores["compiled"].certificate
        note = "" if certificate is None or not any("eager" in n for n in certificate.notes) else " (fell back)"
        return (
            f"{self.case.name}, {steps} steps",
            f"{1e3 * statistics.median(s.cpu for s in found['fit']) / steps:.2f}",
            *(_both(cases.ratio(found[name], found["fit"])) for name in ("eager", "certified")),
            _both(cases.ratio(once["compiled"], once["fit"])),
            _both(cases.ratio(found["eager"], found["loop"])),
            f"{max((s.wall for s in self.compiling), default=0):.0f} s" + note,
            f"{float((eager - compiled).abs().max() / eager.abs().max()):.0e}",
        )


def _both(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} ({pair[1]:.2f})"


def measure(names: Sequence[str], *, rounds: int, quick: bool) -> str:
    """The table."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            rows.append(Contest(cases.CASES[name], Path(directory), quick=quick).row(rounds))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return cases.table(HEAD, rows)


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=cases.CASES, default=list(cases.CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    cases.quiet()
    names = ["LogReg", "MnistNet"] if chosen.quick else chosen.case
    found = measure(names, rounds=1 if chosen.quick else chosen.rounds, quick=chosen.quick)
    print(found)
    return found


if __name__ == "__main__":
    main()
