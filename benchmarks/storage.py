"""What a log costs and what it keeps, on recorded runs.

    python benchmarks/storage.py [--quick] [--data-dir FOLDER_WITH_MNIST] [--only codecs recovery memory ids scores]

Networks are trained on MNIST, and windows of their trajectories are written and read again with each codec. Ratios are
bytes of plain states over bytes of stored ones; speeds are millions of bytes of plain states per second of processor
time, checksums included, the best of some rounds. Then: a writer that is killed before it has sealed anything, the
memory of one that is fed faster than it can write, the record of a long run on a large data set without its states,
and scores from all states against scores from every hundredth.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from cases import CASES, Seconds, quiet, table
from memory import status
from mnist_runs import add_data_option, data_name, module, train, training_data

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.log import Draw, Header, LogWriter, MicroBatch, ParamGroup, RunLog, Step
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.random_state import capture
from lightning_sgdinf.state import Layout, ModelState

CODECS = ("none", "delta", "small", "delta2")
RUNS = (("MnistNet", "sgd"), ("CNN", "sgd"), ("CNN", "momentum"), ("CNN", "adam"))
HEADER = Header(run_id="0" * 16, created="", model="benchmark", optimizer="benchmark", parameters=())
MEGABYTE, MEBIBYTE = 1e6, 1 << 20

Row = tuple[str, str, str, str]
"""What is promised, the aim, what was measured, and whether it is met."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done.

    Attributes:
        window: Steps of a trajectory.
        epoch: Steps of an epoch.
        epochs: Of the runs; the second window is at their end.
        rounds: Of which the best counts.
        left_bytes: Of the states that a killed writer leaves.
        fed_bytes: That the writer is fed whose memory is looked at.
        examples: Of the large data set.
        steps: Of the run whose scores are compared.
    """

    window: int = 100
    epoch: int = 938
    epochs: int = 1
    rounds: int = 2
    left_bytes: int = 256 * MEBIBYTE
    fed_bytes: int = 2048 * MEBIBYTE
    examples: int = 1_200_000
    steps: int = 220


QUICK = Sizes(
    window=20, epoch=60, epochs=1, rounds=1, left_bytes=16 * MEBIBYTE, fed_bytes=256 * MEBIBYTE, examples=6_000, steps=8
)


@dataclass(frozen=True, slots=True)
class Windows:
    """Which states are stored: those of some ranges of steps."""

    ranges: tuple[range, ...]

    def stores(self, index: int, epoch: int, max_epochs: int) -> bool:
        """Whether the state before step ``index`` is."""
        return any(index in one for one in self.ranges)

    def __str__(self) -> str:
        return "windows"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Successive states and the steps between them."""

    states: Sequence[ModelState]
    steps: Sequence[Step]

    @property
    def plain_bytes(self) -> int:
        """Of the states."""
        return sum(v.nbytes for state in self.states for *_, v in state.items())

    @classmethod
    def read(cls, log: RunLog, window: range) -> Trajectory:
        """A part of a recorded run, numbered from 0."""
        steps = [replace(log.step(t), index=place) for place, t in enumerate(window)]
        return cls([log.state(t) for t in window], steps)


# Codecs ------------------------------------------------------------------------------------------------------------


def trajectories(
    network: str, optimizer: str, data_dir: Path | None, sizes: Sizes, folder: Path
) -> Iterator[tuple[str, Trajectory]]:
    """The beginning and the end of a recorded run."""
    total = sizes.epoch * sizes.epochs
    windows = range(sizes.window), range(total - sizes.window, total)
    path = folder / f"{network}-{optimizer}.tlog"
    data = training_data(data_dir, sizes.epoch)
    train(module(network, optimizer), data, TrajectoryRecorder(path, keep=Windows(windows)), epochs=sizes.epochs)
    with RunLog.open(path) as log:
        for window in windows:
            yield f"{window.start} to {window.stop - 1}", Trajectory.read(log, window)


def write(path: Path, found: Trajectory, codec: str) -> LogWriter:
    """A writer that has written them."""
    layouts = [Layout.of(state) for state in found.states]
    layouts = [layouts[-1] if one == layouts[-1] else one for one in layouts]
    writer = LogWriter(path, header=HEADER, codec=codec)
    for state, step, layout in zip(found.states, found.steps, layouts, strict=True):
        put(writer, state, step, layout)
    writer.flush()
    return writer


def put(writer: LogWriter, state: ModelState, step: Step, layout: Layout, *, store: bool = True) -> None:
    flat = writer.take_buffers(layout)
    layout.pack(state, flat)
    writer.put(step, layout, flat, store=store)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a codec: how much smaller states and log are than plain states, and megabytes of plain states per second."""

    states: float
    log: float
    write: float
    read: float


def measured(found: Trajectory, codec: str, rounds: int, folder: Path) -> Figures:
    """Write, and read backwards."""
    written, read, stored, whole = [], [], 0, 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / "run.tlog"
            began = Seconds.now()
            writer = write(path, found, codec)
            written.append((Seconds.now() - began).cpu)
            writer.abandon("")
            with RunLog.open(path) as log:
                began = Seconds.now()
                for index in range(len(log), -1, -1):
                    log.state(index)
                read.append((Seconds.now() - began).cpu)
                parts = [part for segment in log.segments() for part in segment.sizes().items()]
                stored, whole = sum(size for name, size in parts if "/" in name), log.size_bytes
    size = found.plain_bytes
    return Figures(size / stored, size / whole, size / min(written) / MEGABYTE, size / min(read) / MEGABYTE)


def allowed(states: Sequence[ModelState]) -> float:
    """How much smaller the parameters could be, if differences of successive bit patterns were coded by how often each
    length occurs, and bits below the first as they are. Codecs see a little more: what is near each other is alike."""
    parameters = [torch.cat([p.reshape(-1) for p in state.params.values()]) for state in states]
    bits = torch.stack(parameters).view(torch.int32).numpy().astype(np.int64)
    differences = np.abs(np.diff(bits, axis=0))
    lengths = np.where(differences > 0, np.log2(np.maximum(differences, 1)).astype(np.int64) + 2, 0)  # with the sign
    shares = np.bincount(lengths.reshape(-1)) / lengths.size
    shares = shares[shares > 0]
    return float(32 / (np.maximum(lengths - 1, 0).mean() - (shares * np.log2(shares)).sum()))


def codecs(data_dir: Path | None, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """What the codecs save and how fast they are, run by run; then what of it is promised."""
    rows, least, slowest = [], {}, dict.fromkeys(CODECS, np.inf)
    for network, optimizer in RUNS:
        for place, trajectory in trajectories(network, optimizer, data_dir, sizes, folder):
            bound = f"{allowed(trajectory.states[:16]):.2f}" if optimizer == "sgd" else ""
            for codec in CODECS:
                found = measured(trajectory, codec, sizes.rounds, folder)
                figures = f"{found.states:.2f}", bound, f"{found.log:.2f}", f"{found.write:.0f}", f"{found.read:.0f}"
                rows.append((f"{network}, {optimizer}", place, codec, *figures))
                if optimizer == "sgd":
                    least[network, codec] = min(least.get((network, codec), np.inf), found.states)
                if network == "CNN":
                    slowest[codec] = min(slowest[codec], found.read)
    head = ("run", "steps", "codec", "states", "entropy allows", "log", "write MB/s", "read back MB/s")
    print(table(head, rows), end="\n\n", flush=True)
    for network in ("CNN", "MnistNet"):
        for codec, aim in {"delta": 1.6, "small": 1.85}.items():
            yield at_least(f"states of {network} without loss, SGD, `{codec}`", aim, least[network, codec], "x")
    yield at_least("reading backwards, `delta`, slowest run of the CNN", 800, slowest["delta"], "MB/s")
    yield at_least("reading backwards, `none`, slowest run of the CNN", 2000, slowest["none"], "MB/s")


# A killed writer -----------------------------------------------------------------------------------------------------


def write_and_die(source: Path, path: Path, codec: str, left_bytes: int, told: Connection) -> None:
    """Write states of a run back and forth, tell how many, and be killed before anything is sealed."""
    with RunLog.open(source) as log:
        states = [log.state(t) for t in range(len(log))]
        step = log.step(0)
    states += states[-2:0:-1]
    layout = Layout.of(states[0])
    count = left_bytes // sum(v.nbytes for *_, v in states[0].items())
    writer = LogWriter(path, header=HEADER, codec=codec, segment_bytes=2 * left_bytes)
    for t in range(count):
        put(writer, states[t % len(states)], replace(step, index=t), layout)
    told.send(count)
    os.kill(os.getpid(), signal.SIGKILL)


def recovery(data_dir: Path | None, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Seconds that it takes to make such a log whole, and how many of its last steps are lost."""
    source = folder / "short.tlog"
    train(module("CNN"), training_data(data_dir, 24), TrajectoryRecorder(source))
    seconds, lost = {}, []
    for codec in CODECS:
        path = folder / f"left-{codec}.tlog"
        ours, theirs = multiprocessing.Pipe(duplex=False)
        arguments = source, path, codec, sizes.left_bytes, theirs
        child = multiprocessing.get_context("fork").Process(target=write_and_die, args=arguments)
        child.start()
        count = ours.recv()
        child.join()
        began = Seconds.now()
        lost.append(count - recover(path).steps)
        seconds[codec] = (Seconds.now() - began).cpu
    slowest = max(seconds, key=seconds.__getitem__)
    what = f"recovery of {sizes.left_bytes // MEBIBYTE} MiB of states that were not sealed, slowest codec (`{slowest}`)"
    yield at_most(what, 2, seconds[slowest], "s")
    yield at_most("steps lost when a writer at full speed is killed, of four", 23, max(lost), "steps")


# Memory --------------------------------------------------------------------------------------------------------------

STATE_WORDS, QUEUE_BYTES = 4 << 20, 64 << 20


def feed(path: Path, size: int, told: Connection) -> None:
    """Give a writer states as fast as it takes them, and tell by how many bytes the peak of memory grew."""
    quiet()
    state = ModelState(params={"w": torch.randn(STATE_WORDS)})
    noise = 1e-3 * torch.randn(STATE_WORDS)
    layout = Layout.of(state)
    step = Step(index=0, epoch=0, global_step=0, micro_batches=(), groups=(ParamGroup(params=("w",), options={}),))
    writer = LogWriter(path, header=HEADER, queue_bytes=QUEUE_BYTES)
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set counts anew
    before = status("VmRSS")
    for t in range(size // (4 * STATE_WORDS)):
        put(writer, state, replace(step, index=t), layout)
        state.params["w"].add_(noise)
    writer.flush()
    grown = status("VmHWM") - before
    writer.abandon("")
    told.send(grown)


def memory(data_dir: Path | None, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Peak memory of a writer that cannot keep up."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    arguments = folder / "fed.tlog", sizes.fed_bytes, theirs
    child = multiprocessing.get_context("spawn").Process(target=feed, args=arguments)  # a heap with nothing in it yet
    child.start()
    grown = ours.recv()
    child.join()
    states = f"{sizes.fed_bytes // MEBIBYTE} MiB of states of {4 * STATE_WORDS // MEBIBYTE} MiB"
    what = f"memory of a writer that is fed {states} at full speed, queue of {QUEUE_BYTES // MEBIBYTE} MiB"
    yield at_most(what, (QUEUE_BYTES + 4 * 4 * STATE_WORDS) / MEBIBYTE, grown, "MiB")


# Ids and hyper-parameters --------------------------------------------------------------------------------------------

EPOCHS, BATCH_SIZES = 20, (256, 64)


def large_run(examples: int, batch_size: int) -> Iterator[Step]:
    """Steps of a long run: a new permutation in each epoch, a new learning rate in each step, dropout's generator on
    its way."""
    rng = np.random.default_rng(0)
    total = EPOCHS * -(-examples // batch_size)
    at_rest, index = capture(devices=False), 0
    torch.manual_seed(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(examples)
        for batch, start in enumerate(range(0, examples, batch_size)):
            torch.rand(500)
            draw = Draw(example_ids=order[start : start + batch_size], random=at_rest, digest=int(rng.integers(2**32)))
            random = {**at_rest, "torch": torch.random.get_rng_state().numpy().tobytes()}
            options = {"lr": 0.05 * (1 + np.cos(np.pi * index / total)), "momentum": 0.9, "weight_decay": 5e-4}
            yield Step(
                index=index,
                epoch=epoch,
                global_step=index,
                micro_batches=(MicroBatch(batch_idx=batch, draws=(draw,), stepped_with=random),),
                groups=(ParamGroup(params=("w",), options=options | {"nesterov": False, "foreach": None}),),
                loss=float(rng.random()),
            )
            index += 1


def ids(data_dir: Path | None, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Bytes of the record of such a run; it is read again in places."""
    state = ModelState(params={"w": torch.zeros(1)})
    layout = Layout.of(state)
    for batch_size in BATCH_SIZES:
        path, kept = folder / f"ids-{batch_size}.tlog", {}
        writer = LogWriter(path, header=HEADER)
        for step in large_run(sizes.examples, batch_size):
            put(writer, state, step, layout, store=False)
            if step.index % 997 == 0:
                kept[step.index] = step.example_ids
        writer.finish(layout, writer.take_buffers(layout))
        with RunLog.open(path) as log:
            assert all(np.array_equal(log.step(t).example_ids, expected) for t, expected in kept.items())
            what = (
                f"ids and hyper-parameters of {EPOCHS} epochs of {sizes.examples:,} examples, batches of {batch_size}"
            )
            yield at_most(what, 200, log.size_bytes / MEGABYTE, "MB")


# Scores --------------------------------------------------------------------------------------------------------------


def scores(data_dir: Path | None, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Whether every hundredth state is as good as all of them."""
    case = replace(CASES["MnistNet"], steps=sizes.steps)
    data = case.data()
    values = []
    for keep in ("every_step", "every(100)"):
        path = folder / keep
        train(case.module(), data.train_set, TrajectoryRecorder(path, keep=keep))
        runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
        values.append(runner.run(case.module(), datamodule=data, log=path).values)
    same = torch.equal(*values) and bool(values[0].any())
    yield "scores from every 100th state, and from all", "same bits", "same bits" if same else "differ", said(same)


# The summary ---------------------------------------------------------------------------------------------------------


def at_least(goal: str, aim: float, found: float, unit: str) -> Row:
    return goal, f"at least {aim:g} {unit}", f"{number(found)} {unit}", said(found >= aim)


def at_most(goal: str, aim: float, found: float, unit: str) -> Row:
    return goal, f"at most {aim:g} {unit}", f"{number(found)} {unit}", said(found <= aim)


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def said(met: bool) -> str:
    return "met" if met else "missed"


PARTS: Mapping[str, Callable[[Path | None, Sizes, Path], Iterator[Row]]] = {
    "codecs": codecs,
    "recovery": recovery,
    "memory": memory,
    "ids": ids,
    "scores": scores,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add_data_option(parser)
    chosen = parser.parse_args()
    quiet()
    sizes = QUICK if chosen.quick else Sizes()
    summary: list[Row] = []
    for name in chosen.only:
        with tempfile.TemporaryDirectory() as folder:
            summary += PARTS[name](chosen.data_dir, sizes, Path(folder))
    print(f"The runs are of {data_name(chosen.data_dir)}.\n")
    print(table(("promise", "aim", "measured", ""), summary))


if __name__ == "__main__":
    main()
