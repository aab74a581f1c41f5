"""What recording costs, in all and part by part.

    python benchmarks/recording.py [--rounds 7] [--steps 120] [--optimizer sgd|momentum|adam]

Fits a small convolutional net on 1x28x28 images in batches of 64 with and without the recorder, in turn within each
round, so that whatever slows the machine down slows all of them down. Then one more fit with a clock around each part
of the recorder gives microseconds per step. Without workers: nothing of the loader's work is hidden.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.log.records import Step
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.state import Layout

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
}

PARTS = {
    "random states": ["record.random_watch.RandomWatch.capture"],
    "batch checksum": ["record.example_ids.batch_digest"],
    "state: read": ["record.snapshots.StateReader.read"],
    "state: copy": ["record.snapshots.StateReader.pack"],
    "state: compare": ["record.recording.changed_tensors"],
    "state: finite": ["record.snapshots.StateReader.finite"],
    "param groups": ["record.optimizer_steps.OptimizerSteps.read_groups"],
    "eval modules": ["record.snapshots.StateReader.eval_modules"],
    "hand to writer": ["log.writer.LogWriter.put", "log.writer.LogWriter.lanes"],
}
WHOLE = {
    "micro-batch begins": ["record.recording.Recording.micro_batch_begins"],
    "step ends": ["record.recording.Recording._after_step"],
    "batch unwrapped": ["record.loaders.LoaderTap._unwrap"],
    "batch noted": ["record.example_ids._Note.write", "record.example_ids._Note.attach"],
}
ONCE = {
    "make the log": ["record.callback.TrajectoryRecorder._open"],
    "finish the log": ["record.recording.Recording.close"],
}


class Net(LightningModule):
    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.body = nn.Sequential(
            nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.Dropout2d(), nn.MaxPool2d(2),
            nn.ReLU(), nn.Flatten(), nn.Linear(320, 25), nn.ReLU(), nn.Linear(25, 10),
        )  # fmt: skip

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.body(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


class Clock(Callback):
    """Seconds from the first batch to the end of training; put last, it includes finishing the log.

    Three clocks: of the wall, of the processor for the training thread, and for all threads, the writer's included.
    """

    clocks = (time.perf_counter, time.thread_time, time.process_time)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = [clock() for clock in self.clocks]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = [clock() - began for clock, began in zip(self.clocks, self._began, strict=True)]


class Nowhere:
    """A writer that writes nothing."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._free: dict[int, dict[str, Tensor]] = {}

    def lanes(self, layout: Layout) -> dict[str, Tensor]:
        return self._free.setdefault(id(layout), layout.empty())

    def put(self, step: Step, layout: Layout, lanes: dict[str, Tensor], *, store: bool = True) -> None: ...

    def flush(self) -> None: ...

    def finish(self, layout: Layout, lanes: dict[str, Tensor], **rest: Any) -> None: ...

    def abandon(self, reason: str) -> None: ...


def fit(data: TensorDataset, optimizer: str, *callbacks: Callback) -> list[float]:
    """Seconds of one epoch: wall, training thread, all threads."""
    seed_everything(0, verbose=False)
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(optimizer), DataLoader(data, 64, shuffle=True))
    return clock.seconds


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    quiet()
    data = TensorDataset(torch.rand(64 * chosen.steps, 1, 28, 28), torch.randint(10, (64 * chosen.steps,)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.tlog")

        def recorder(**options: Any) -> TrajectoryRecorder:
            return TrajectoryRecorder(path, overwrite=True, **options)

        ways: dict[str, Callable[[], list[Callback]]] = {
            "no recorder": list,
            "no recorder again": list,
            "recorder, nothing written": lambda: [recorder(writer=Nowhere)],
            "the same, no checksums": lambda: [recorder(writer=Nowhere, digest_batches=False)],
            "recorder, codec none": lambda: [recorder(codec="none")],
            "recorder, codec delta": lambda: [recorder(codec="delta")],
        }
        found: dict[str, list[list[float]]] = {name: [] for name in ways}
        for _ in range(chosen.rounds + 1):
            for name, make in ways.items():
                found[name].append(fit(data, chosen.optimizer, *make()))
        parameters = sum(p.numel() for p in Net(chosen.optimizer).parameters())
        print(f"{parameters} parameters, {chosen.optimizer}, {chosen.steps} steps of 64, {chosen.rounds} rounds")
        plain = found["no recorder"][1:]
        print("  median per step, median ratio within a round, ratio of the best rounds")
        print(f"  {'':26s}{'wall':>29s}{'training thread':>31s}{'all threads':>31s}")
        for name, rounds in found.items():
            columns = []
            for clock in range(3):
                ratio = statistics.median(a[clock] / b[clock] for a, b in zip(rounds[1:], plain, strict=True))
                best = min(r[clock] for r in rounds[1:]) / min(r[clock] for r in plain)
                milliseconds = 1e3 * statistics.median(r[clock] for r in rounds[1:]) / chosen.steps
                columns.append(f"{milliseconds:8.3f} ms {ratio:6.3f} x {best:6.3f} x")
            print(f"  {name:26s}" + "   ".join(columns))
        once: Counter[str] = Counter()
        with clocks(ONCE, once, time.perf_counter):
            fit(data, chosen.optimizer, recorder())
        print("  once: " + ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in once.items()))
        for parts in (PARTS, WHOLE):
            spent: Counter[str] = Counter()
            with clocks(parts, spent):
                fit(data, chosen.optimizer, recorder(codec="none"))
            print("  microseconds per step:")
            for name in parts:
                print(f"    {name:22s} {1e6 * spent[name] / chosen.steps:8.1f}")


def quiet() -> None:
    """No advice from Lightning."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
