"""What recording costs, in all and part by part.

    python benchmarks/recording.py [--quick] [--data-dir FOLDER_WITH_MNIST] [--networks MnistNet CNN] [--parts]

Fits two convolutional nets on MNIST in batches of 64 with and without the recorder, in turn within each round, so that
whatever slows the machine down slows all of them down. The time of a step is the median over blocks of 16 steps, each
with one flush of the log; making and finishing the log is timed apart. The log is written by a thread of its own: the
ratio of wall times wants a core for it that is idle, that of all threads' processor time is what is paid where there
is none. ``--parts`` also puts a clock around each part of the recorder. Without workers: nothing of the loader's work
is hidden.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cases import OPTIMIZERS, quiet, table
from lightning.pytorch import Callback
from mnist_runs import NETWORKS, add_data_option, data_name, module, train, training_data
from torch import Tensor

from lightning_sgdinf.log.records import Step
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.state import Layout

PARTS = {
    "random states": ["record.random_watch.RandomWatch.capture"],
    "batch checksum": ["record.example_ids.batch_digest"],
    "state: read": ["record.state_reader.StateReader.read"],
    "state: copy": ["record.state_reader.StateReader.pack"],
    "state: compare": ["record.state_tracker.changed_tensors"],
    "state: finite": ["record.state_reader.StateReader.finite"],
    "param groups": ["record.optimizer_steps.OptimizerSteps.read_groups"],
    "eval modules": ["record.state_reader.StateReader.eval_modules"],
    "hand to writer": ["log.writer.LogWriter.put", "log.writer.LogWriter.take_buffers"],
}
WHOLE = {
    "micro-batch begins": ["record.recording.Recording.begin_micro_batch"],
    "step ends": ["record.recording.Recording._after_step"],
    "batch unwrapped": ["record.loaders.LoaderTap._note", "record.loaders.untracked"],
    "batch noted": ["record.example_ids._Tag.write", "record.example_ids._Tag.attach"],
}
ONCE = {
    "make the log": ["record.recorded_fit.RecordedFit._open_log"],
    "finish the log": ["record.recording.Recording.close"],
}


BLOCK = 16
"""Steps from one flush of the log to the next."""


class Clock(Callback):
    """Seconds of a step by three clocks: of the wall, of the processor for the training thread, and for all threads.

    Each is the median over blocks of steps; the first block, in which the log is made, does not count.
    """

    clocks = (time.perf_counter, time.thread_time, time.process_time)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._times: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % BLOCK == 0:
            self._times.append([clock() for clock in self.clocks])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        blocks = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(self._times[1:])]
        self.seconds = [statistics.median(times) / BLOCK for times in zip(*blocks, strict=True)]


class Nowhere:
    """A writer that writes nothing."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._free: dict[int, dict[str, Tensor]] = {}

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        return self._free.setdefault(id(layout), layout.empty())

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None: ...

    def flush(self) -> None: ...

    def finish(self, layout: Layout, flat: dict[str, Tensor], **rest: Any) -> None: ...

    def abandon(self, reason: str) -> None: ...


Fit = Callable[..., list[float]]
"""Callbacks to seconds of a step: wall, training thread, all threads."""


def fit_of(network: str, optimizer: str, data: Any) -> Fit:
    """Fits always the same."""

    def fit(*callbacks: Callback) -> list[float]:
        clock = Clock()
        train(module(network, optimizer), data, *callbacks, clock)
        return clock.seconds

    return fit


@contextmanager
def clocks(
    parts: Mapping[str, list[str]], seconds: Counter[str], clock: Callable[[], float] = time.thread_time
) -> Iterator[None]:
    """A clock around each function; time inside several is counted for each."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += clock() - began

        return call

    with ExitStack() as stack:
        for name, targets in parts.items():
            for target in targets:
                stack.enter_context(_around(f"lightning_sgdinf.{target}", lambda f, name=name: timed(name, f)))
        yield


def _around(target: str, wrap: Callable[[Any], Any]) -> Any:
    import pkgutil

    return patch(target, wrap(pkgutil.resolve_name(target)))


def ratios(rounds: Sequence[list[float]], plain: Sequence[list[float]]) -> list[str]:
    """Median over rounds of the ratio within a round, and the ratio of the best rounds: one per clock."""
    found = []
    for clock in range(3):
        median = statistics.median(a[clock] / b[clock] for a, b in zip(rounds, plain, strict=True))
        best = min(r[clock] for r in rounds) / min(r[clock] for r in plain)
        found.append(f"{median:.3f} ({best:.3f})")
    return found


def compared(fit: Fit, ways: Mapping[str, Callable[[], list[Callback]]], rounds: int) -> dict[str, list[list[float]]]:
    """Each way once per round, in turn at each place of it, after a round that does not count."""
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    order = list(ways.items())
    for number in range(rounds + 1):
        for name, make in order:
            seconds = fit(*make())
            found[name] += [seconds] if number else []
        order.append(order.pop(0))
    return found


def print_once(fit: Fit, path: Path) -> None:
    """Milliseconds of what is done once per log."""
    once: Counter[str] = Counter()
    with clocks(ONCE, once, time.perf_counter):
        fit(TrajectoryRecorder(path, overwrite=True))
    print("once: " + ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in once.items()))


def print_parts(fit: Fit, path: Path, steps: int) -> None:
    """Microseconds per step of each part of the recorder."""
    for parts in (PARTS, WHOLE):
        spent: Counter[str] = Counter()
        with clocks(parts, spent):
            fit(TrajectoryRecorder(path, overwrite=True, codec="none"))
        print("microseconds per step:")
        for name in parts:
            print(f"  {name:22s} {1e6 * spent[name] / steps:8.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--parts", action="store_true")
    add_data_option(parser)
    chosen = parser.parse_args()
    rounds, steps = (1, 3 * BLOCK) if chosen.quick else (chosen.rounds, chosen.steps)
    quiet()
    data, rows = training_data(chosen.data_dir, steps), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.tlog")

        def recorder(**options: Any) -> list[Callback]:
            return [TrajectoryRecorder(path, overwrite=True, **options)]

        ways: dict[str, Callable[[], list[Callback]]] = {
            "no recorder, again": list,
            "nothing written": lambda: recorder(writer=Nowhere),
            "default": recorder,
        }
        for network in chosen.networks:
            fit = fit_of(network, chosen.optimizer, data)
            found = compared(fit, {"plain": list, **ways}, rounds)
            plain = found.pop("plain")
            parameters = sum(p.numel() for p in module(network).parameters())
            megabytes, step = 4e-6 * parameters, 1e3 * statistics.median(r[0] for r in plain)
            for name, seconds in found.items():
                extra = statistics.median(a[2] - b[2] for a, b in zip(seconds, plain, strict=True))
                model = f"{network}, {parameters:,} parameters, {step:.1f} ms a step"
                rows.append(
                    (model, name, *ratios(seconds, plain), f"{1e3 * extra:.2f} ({1e3 * extra / megabytes:.1f})")
                )
            print_once(fit, path)
            if chosen.parts:
                print_parts(fit, path, steps)
    print(f"{data_name(chosen.data_dir)}, {chosen.optimizer}, {steps} steps of 64, {rounds} rounds.\n")
    head = ("run", "recorder", "wall", "training thread", "all threads", "ms a step (per MB of state)")
    print(table(head, rows))


if __name__ == "__main__":
    main()
