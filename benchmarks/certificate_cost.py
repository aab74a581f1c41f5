"""What the default certificate costs: time as a part of the walk's, memory as a multiple of the fit's.

    python benchmarks/certificate_cost.py [--case "MLP, digits" ...] [--rounds 3] [--output PAGE] [--quick]

**Time** is processor time, in one process: a walk without a certificate and one with the default certificate in turn,
after one of each that is not counted. The ratio is taken within a round; the median over rounds is shown. Where it
goes is measured by clocks around the checks, of which a walk knows nothing.

**Memory** is measured in a process for each of fit, walk and walk with certificate, twice. *Tensors* is what tensors
hold at most: a dispatch mode counts the storage of every tensor that an operation makes or is given, but for the data
set and for what operations hold inside. *Resident* is by how much the resident set grows; it counts what operations
hold inside and what the allocator keeps, and not the code of libraries, all of which is mapped before (Linux 5.14).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cases
import certificate
from memory import status
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lightning_sgdinf.adjoint import AdjointStep
from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.checks import StepComparison, SwapComparison
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scoring import walk, walk_job
from lightning_sgdinf.zoo import logistic_regression, mlp, mnist_net

DIGITS: cases.Shape = (1, 8, 8)
ADULT: cases.Shape = (1, 1, 108)


def transformer(shape: cases.Shape, classes: int) -> nn.Module:
    """Rows of an image as tokens, one layer."""
    return certificate.Transformer(shape[2], shape[1], classes, "gelu")


WIDE = partial(mlp, hidden=(2048, 2048))
CASES: Mapping[str, cases.Case] = {
    c.name: c
    for c in (
        cases.Case("LogReg, Adult rows", logistic_regression, ADULT, 300, 20, epochs=10),
        cases.Case("MLP, digits, short", partial(mlp, hidden=(64,)), DIGITS, 48, 20, epochs=2),
        cases.Case("MLP, digits", partial(mlp, hidden=(64,)), DIGITS, 400, 20, "momentum", epochs=16),
        cases.Case("MnistNet, short", mnist_net, cases.MNIST, 48, 8, epochs=2),
        cases.Case("MnistNet", mnist_net, cases.MNIST, 300, 8, "momentum", epochs=5),
        cases.Case("Transformer, short", transformer, cases.MNIST, 48, 8, "adam", epochs=2),
        cases.Case("Transformer", transformer, cases.MNIST, 200, 8, "adam", epochs=5),
        cases.Case("CifarNet", cases.CASES["CifarNet"].network, cases.CIFAR, 48, 2, epochs=2),
        cases.Case("MLP, 5.8 M, momentum", WIDE, cases.MNIST, 12, 3, "momentum", epochs=2),
        cases.Case("MLP, 5.8 M, Adam", WIDE, cases.MNIST, 12, 3, "adam", epochs=2),
    )
}

CHECKS: Mapping[str, tuple[Any, str]] = {
    "sums": (AdjointStep, "_along"),
    "asked": (walk.Walk, "_expect_reached"),
    "states": (StepComparison, "settles"),
    "swaps": (SwapComparison, "see"),
    "gradient": (walk_job.WalkJob, "_check"),
    "removals": (walk_job.WalkJob, "_measure_trust"),
    "query": (walk_job, "check_logged_query"),
}
"""Where the checks are: the first three at every step."""
POPULATE_READ = 22
"""Linux's number of this advice."""
PER_STEP = ("sums", "asked", "states")


class HeldTensors(TorchDispatchMode):
    """Counts the bytes that the storages of tensors hold while it is entered.

    Attributes:
        held: Now.
        most: At most.
    """

    def __init__(self, apart: Sequence[Tensor]) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known = {t.untyped_storage()._cdata for t in apart}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs, made)):
            if isinstance(value, Tensor):
                self._see(value)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.held += storage.nbytes()
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


@contextmanager
def clocks(spent: dict[str, float]) -> Iterator[None]:
    """Inside, the processor time of each check is added up; what one does inside another counts for the outer one."""
    originals = {name: getattr(*place) for name, place in CHECKS.items()}
    inside: list[str] = []

    def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return original(*args, **kwargs)
            inside.append(name)
            began = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - began
                inside.pop()

        return call

    for name, (owner, attribute) in CHECKS.items():
        setattr(owner, attribute, timed(name, originals[name]))
    try:
        yield
    finally:
        for name, (owner, attribute) in CHECKS.items():
            setattr(owner, attribute, originals[name])


def replay(case: cases.Case, data: cases.Images, log: Path, level: str) -> Certificate | None:
    """Walk, with or without a certificate."""
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate=level)  # type: ignore[arg-type]
    return runner.run(case.module(), datamodule=data, log=log).certificate


def times(case: cases.Case, log: Path, rounds: int) -> dict[str, Any]:
    """Walk without and with certificate by turns."""
    data, found = case.data(), []
    for number in range(rounds + 1):
        one: dict[str, Any] = {}
        for level in ("off", "fast"):
            spent: dict[str, float] = {}
            began = time.process_time()
            with clocks(spent):
                said = replay(case, data, log, level)
            one[level] = time.process_time() - began
            if level == "fast":
                one["spent"] = spent
        if number:
            found.append(one)
    assert said is not None
    middle = lambda value: statistics.median(value(one) for one in found)  # noqa: E731
    per_step = lambda one: sum(one["spent"].get(name, 0.0) for name in PER_STEP)  # noqa: E731
    return {
        "walk": middle(lambda one: one["off"]),
        "share": middle(lambda one: one["fast"] / one["off"] - 1),
        "per_step": middle(lambda one: per_step(one) / one["off"]),
        **{name: middle(lambda one, n=name: one["spent"].get(n, 0.0) / one["off"]) for name in CHECKS},
        "left_out": 0 if said.trust is None else len(said.trust.example_ids),
        "at_once": 0 if said.trust is None else said.trust.at_once,
        "where": "nothing" if said.trust is None else said.trust.where,
    }


def memory(case: cases.Case, log: Path, what: str, *, tensors: bool) -> float:
    """Return the peak of a fit or a walk in MiB."""
    data = case.data()
    own = [v for part in (data.train_set, data.val_set) for v in vars(part).values() if isinstance(v, Tensor)]
    count = HeldTensors(own)
    gc.collect()
    load_code()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set counts anew
    before = status("VmRSS")
    with count if tensors else nullcontext():
        if what in ("fit", "record"):
            cases.fit(case, data, log=log if what == "record" else None)
        else:
            replay(case, data, log, "off" if what == "walk" else "fast")
    return count.most / 2**20 if tensors else status("VmHWM") - before


def load_code() -> None:
    """Map the pages of every library, so that their first use does not count as memory."""
    library = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *_, path = line.split(maxsplit=5) if line.count(" ") > 5 else (*line.split()[:2], "")
        if path.startswith("/") and permissions[0] == "r":
            start, end = (int(place, 16) for place in span.split("-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), POPULATE_READ)
    library.malloc_trim(0)


def measured(name: str, what: str, log: Path, rounds: int, *, quick: bool) -> Any:
    """Measure one thing in a process of its own, which has all code loaded."""
    case = replace(CASES[name], steps=CASES[name].quick_steps) if quick else CASES[name]
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run() -> None:
        kind, _, how = what.partition("/")
        theirs.send(times(case, log, rounds) if kind == "times" else memory(case, log, kind, tensors=how == "tensors"))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def row(name: str, log: Path, rounds: int, *, quick: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A line of the table of times and one of that of memory."""
    ask = partial(measured, name, log=log, rounds=rounds, quick=quick)
    ask("record/resident")
    seconds = ask("times")
    title = f"{name}, {CASES[name].quick_steps if quick else CASES[name].steps} steps"
    percent = lambda key: f"{100 * seconds[key]:.1f} %" if seconds[key] < 0.1 else f"{100 * seconds[key]:.0f} %"  # noqa: E731
    bytes_of = {(w, h): ask(f"{w}/{h}") for w in ("fit", "walk", "checked") for h in ("tensors", "resident")}
    times_fit = lambda what, how: f"{bytes_of[what, how] / max(bytes_of['fit', how], 1e-3):.1f}"  # noqa: E731
    return (
        title,
        f"{seconds['walk']:.2f} s",
        f"{100 * seconds['share']:.0f} %",
        *(percent(key) for key in ("per_step", "swaps", "gradient", "removals")),
        f"{seconds['left_out']} of {seconds['where']}, {seconds['at_once']} at once",
    ), (
        title,
        *(
            text
            for how in ("tensors", "resident")
            for text in (f"{bytes_of['fit', how]:.1f} MiB", times_fit("walk", how), times_fit("checked", how))
        ),
    )


TIMES = ("run", "walk", "certificate / walk", "per-step checks", "swaps", "gradient check", "removals", "left out")
MEMORY = ("run", "fit, tensors", "walk / fit", "certificate / fit", "fit, resident", "walk / fit", "certificate / fit")


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        cases.quiet()
        for number, name in enumerate(["LogReg, Adult rows"] if chosen.quick else chosen.case):
            rounds = 1 if chosen.quick else chosen.rounds
            rows.append(row(name, Path(directory) / f"{number}.tlog", rounds, quick=chosen.quick))
            print(*rows[-1], sep="\n", file=sys.stderr, flush=True)
    found = cases.table(TIMES, [seconds for seconds, _ in rows]) + "\n\n"
    found += cases.table(MEMORY, [held for _, held in rows])
    print(found)
    return found


if __name__ == "__main__":
    main()
