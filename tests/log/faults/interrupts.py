"""Ctrl-C, SIGTERM and a cluster's signal at any instruction of the recorder, against a fit that nobody interrupted."""

from __future__ import annotations

import logging
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from lightning_sgdinf.errors import LogNotFoundError
from lightning_sgdinf.log import writer as log_writer
from lightning_sgdinf.log import writer_thread
from lightning_sgdinf.log.directory import LogDirectory
from lightning_sgdinf.log.reader import RunLog
from tests.log.cases import described
from tests.log.faults.tally import Tally, bytes_of, in_child

STEPS, EXAMPLES = 6, 12
HANGS = 300  # seconds: whoever hangs, hangs for ever; a busy machine is slow
OURS = tuple(f"{os.sep}lightning_sgdinf{os.sep}{room}{os.sep}" for room in ("record", "log"))

Place = tuple[str, int, str, int, int]
"""An instruction: file, line and name of its function, offset, and how often it has been come to before."""


# The fit -----------------------------------------------------------------------------------------------------------


@dataclass
class Fit:
    """A small fit with a recorder: momentum, BatchNorm, dropout, accumulation, an averaged model, a checkpoint."""

    path: Path
    trainer: Any
    module: Any
    loader: Any

    @classmethod
    def make(cls, path: Path, **recorder: Any) -> Fit:
        lightning, net, callback = _parts()
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        data = TensorDataset(torch.randn(EXAMPLES, 3), torch.randn(EXAMPLES, 1))
        options = {"flush_every": 2, "segment_bytes": 1} | recorder
        recorder_ = callback(path, writer=lambda *a, **k: log_writer.LogWriter(*a, **k, **options))
        module = net()
        trainer = lightning.Trainer(
            max_epochs=STEPS // 3, callbacks=[recorder_], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
            accumulate_grad_batches=2, default_root_dir=path.parent, barebones=False,
        )  # fmt: skip
        return cls(path, trainer, module, DataLoader(data, batch_size=2, shuffle=True))

    def run(self) -> None:
        self.trainer.fit(self.module, self.loader)

    def run_to_its_end(self) -> None:
        """However it ends; but what is raised must not come from the recorder."""
        guard = signal.signal(signal.SIGTERM, lambda *_: None)  # before and after Lightning cares for it
        try:
            self.run()
        except (SystemExit, KeyboardInterrupt):
            pass
        except Exception as error:  # Lightning's own teardown has bugs
            if any(room in frame.filename for frame in traceback.extract_tb(error.__traceback__) for room in OURS):
                raise
        finally:
            signal.signal(signal.SIGTERM, guard)


def _parts() -> tuple[Any, Any, Any]:
    import lightning
    import torch

    from lightning_sgdinf.record import TrajectoryRecorder

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1)
            )

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return torch.nn.functional.mse_loss(self.layers(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    return lightning, Net, TrajectoryRecorder


@dataclass
class Truth:
    """What a fit records that nobody interrupts."""

    steps: list[str]
    states: list[bytes]

    @classmethod
    def of(cls, path: Path) -> Truth:
        with RunLog.open(path) as log:
            assert log.finished
            assert len(log) == STEPS
            steps = [described(step) for step in log.steps(0, len(log))]
            return cls(steps, [bytes_of(log.state(t)) for t in range(len(log) + 1)])

    def check(self, path: Path, taken: int) -> int:
        """A log is sealed and tells the truth of ``taken`` steps, or of one more; the number of its steps."""
        try:
            log = RunLog.open(path)
        except LogNotFoundError:
            assert not taken, f"no log of {taken} steps"
            return 0
        with log:
            steps = len(log)
            assert log.finished, f"no end: {log.end_reason}"
            assert taken <= steps <= taken + 1, f"{steps} steps, but {taken} were taken"
            assert [described(s) for s in log.steps(0, steps)] == self.steps[:steps], "another step"
            assert [bytes_of(log.state(t)) for t in range(steps + 1)] == self.states[: steps + 1], "another state"
            assert log.verify().ok
        left = sorted(p.name for p in path.iterdir() if not p.name.startswith("seg-"))
        assert left == ["LOCK", "end.h5"], f"left behind: {left}"
        assert not LogDirectory(path).is_being_written(), "the lock is still held"
        return steps


# Instructions ------------------------------------------------------------------------------------------------------


@contextmanager
def every_instruction(act: Callable[[Place], None]) -> Iterator[None]:
    """Call a function before every instruction of the recorder and the log in this thread."""
    seen: Counter[tuple[CodeType, int]] = Counter()
    names: dict[CodeType, tuple[str, int, str]] = {}

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            code = frame.f_code
            name = names.get(code)
            if name is None:
                name = names[code] = code.co_filename, code.co_firstlineno, code.co_name
            at = code, frame.f_lasti
            seen[at] += 1
            act((*name, frame.f_lasti, seen[at] - 1))
        return local

    def called(frame: FrameType, event: str, argument: object) -> Any:
        if not any(room in frame.f_code.co_filename for room in OURS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return local

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def instructions(fit: Fit) -> list[Place]:
    """All that a fit comes to, in order."""
    found: list[Place] = []
    with every_instruction(found.append):
        fit.run()
    return found


def chosen(places: list[Place], rng: np.random.Generator, most: int | None) -> list[Place]:
    """Each instruction once, at one of the times it is come to; at most so many of them."""
    times: dict[tuple[Any, ...], list[Place]] = {}
    for place in places:
        times.setdefault(place[:-1], []).append(place)
    each = [some[int(rng.integers(len(some)))] for some in times.values()]
    if most is None or most >= len(each):
        return each
    return [each[i] for i in sorted(rng.choice(len(each), most, replace=False).tolist())]


def at_place(place: Place, act: Callable[[], None]) -> Callable[[Place], None]:
    """Act once, before an instruction."""
    left = [place]

    def maybe(here: Place) -> None:
        if left and here == left[0]:
            left.clear()
            act()

    return maybe


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def name_of(place: Place) -> str:
    file, line, name, offset, times = place
    return f"{Path(file).name}:{line}, {name}, byte {offset}, time {times}"


def interrupted(path: Path, place: Place, truth: Truth) -> None:
    """A fit is interrupted before an instruction of the recorder."""
    fit = Fit.make(path)
    with every_instruction(at_place(place, raise_interrupt)):
        fit.run_to_its_end()
    _end(fit, truth)


def _end(fit: Fit, truth: Truth) -> int:
    threads = [t for t in writer_thread.living if not t.queue.ended]
    assert not threads, "a writer is still there"
    optimizer = fit.trainer.optimizers[0] if fit.trainer.optimizers else None
    if optimizer is not None:
        assert not optimizer._optimizer_step_post_hooks, "a hook is left on the optimizer"
        assert not optimizer._optimizer_step_pre_hooks, "a hook is left on the optimizer"
    for owner, name in ((fit.trainer.strategy, "training_step"), (fit.trainer.precision_plugin, "clip_gradients")):
        assert name not in vars(owner), f"{name} is still replaced"
    return truth.check(fit.path, fit.trainer.global_step)


def saved_by_a_signal(path: Path, place: Place, truth: Truth) -> None:
    """A signal's handler saves a checkpoint before an instruction, as under SLURM; the fit goes on, and a later one
    goes on from the checkpoint."""
    fit = Fit.make(path)
    checkpoint = path.parent / "by-signal.ckpt"
    checkpoint.unlink(missing_ok=True)
    with every_instruction(at_place(place, lambda: fit.trainer.save_checkpoint(checkpoint))):
        fit.run()
    assert _end(fit, truth) == STEPS
    if checkpoint.exists():
        import torch

        for mark in torch.load(checkpoint, weights_only=False).get("lightning_sgdinf", ()):
            steps = mark["steps"]
            with RunLog.open(path) as log:
                state = log.state(steps)
            from lightning_sgdinf.record.resume import tensor_checksums
            from lightning_sgdinf.state import Layout

            layout = Layout.of(state)
            flat = layout.empty()
            layout.pack(state, flat)
            assert tensor_checksums(layout, flat) == mark["tensors"], f"the bookmark of step {steps} has another state"


def terminated(path: Path, place: Place, truth: Truth) -> None:
    """SIGTERM comes before an instruction; Lightning notes it and ends the fit by itself."""
    fit = Fit.make(path)
    with every_instruction(at_place(place, lambda: signal.raise_signal(signal.SIGTERM))):
        fit.run_to_its_end()
    _end(fit, truth)


KINDS: dict[str, Callable[[Path, Place, Truth], None]] = {
    "Ctrl-C at any instruction": interrupted,
    "a checkpoint is saved in a signal's handler at any instruction": saved_by_a_signal,
    "SIGTERM at any instruction": terminated,
}


def interrupts(share: float, rng: np.random.Generator, place: Path) -> list[Tally]:
    """Each kind at every instruction, or a share of them; and a few hundred signals at random times."""
    known = place / "known"

    def uninterrupted() -> None:  # in a child: where torch has been at work, no child can be
        signal.alarm(0)
        Fit.make(place / "warm").run()
        begun = time.monotonic()
        Fit.make(place / "truth").run()
        took = time.monotonic() - begun
        places = instructions(Fit.make(place / "probe"))
        known.write_bytes(pickle.dumps((Truth.of(place / "truth"), places, took)))

    assert not in_child(uninterrupted)
    truth, places, took = pickle.loads(known.read_bytes())
    tallies = []
    for name, kind in KINDS.items():
        every = chosen(places, rng, None)
        some = chosen(places, rng, max(3, round(share * len(every))))
        faults = [(name_of(at), partial(kind, place=at, truth=truth)) for at in some]
        tallies.append(done(Tally(name), faults, place))
    tally = Tally("SIGINT and SIGTERM from outside at any time")
    shots = []
    for number in range(max(2, round(400 * share))):
        kind, delay = (signal.SIGINT, signal.SIGTERM)[number % 2], float(rng.uniform(0, 1.2 * took))
        shots.append((f"{kind.name} after {delay:.4f} s", partial(shot, kind=kind, delay=delay, truth=truth)))
    return [*tallies, done(tally, shots, place)]


Fault = tuple[str, Callable[[Path], None]]
"""A name, and what does it to a log at a path and looks what came of it."""


def done(tally: Tally, faults: list[Fault], place: Path) -> Tally:
    """Do many faults, some in each child; go on with the next where a child does not come through."""
    report, left = place / "report", deque(faults)
    while left:
        some = list(islice(left, 25))

        def action(some: list[Fault] = some) -> None:
            signal.alarm(0)
            _parts()  # which takes its time
            with report.open("w") as file:
                for name, do in some:
                    path = place / "run"
                    shutil.rmtree(path, ignore_errors=True)
                    signal.alarm(HANGS)
                    try:
                        do(path)
                    except (Exception, SystemExit) as error:
                        file.write(f"{name}: {type(error).__name__}: {str(error)[:200]!r}\n")
                    else:
                        file.write("\n")
                    file.flush()

        report.unlink(missing_ok=True)
        status = in_child(action)
        lines = report.read_text().splitlines() if report.exists() else []
        tally.lost += [line for line in lines if line]
        if status and len(lines) < len(some):
            lines.append(f"{some[len(lines)][0]}: the child ended with {status}")
            tally.lost.append(lines[-1])
        tally.faults += len(lines)
        for _ in lines:
            left.popleft()
    return tally


def shot(path: Path, kind: signal.Signals, delay: float, truth: Truth) -> None:
    """A fit gets a signal from outside after a time."""
    fit = Fit.make(path)

    def shoot() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), kind)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: None)
    shooter = threading.Thread(target=shoot)
    with suppress(KeyboardInterrupt):
        shooter.start()
        fit.run_to_its_end()
        shooter.join()
    with suppress(KeyboardInterrupt):
        shooter.join()
    _end(fit, truth)
