"""What recording costs and what the codecs save, on a real trajectory.

    python benchmarks/storage.py [--steps 200] [--width 1024] [--optimizer sgd|momentum|adam]

Trains a small classifier on synthetic images, keeps every state in memory, then writes and reads the same states with
each codec. Figures are megabytes of uncompressed states per second of wall time, and bytes relative to uncompressed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lightning_sgdinf.log import Draw, Header, LogWriter, MicroBatch, ParamGroup, RunLog, Step
from lightning_sgdinf.random_state import capture
from lightning_sgdinf.state import Layout, ModelState

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def trajectory(steps: int, width: int, optimizer: str) -> tuple[list[ModelState], float]:
    """States ``0 .. steps`` of a training run, and the seconds a step took."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 10))
    chosen = OPTIMIZERS[optimizer](model.parameters())
    centres = torch.randn(10, 256)
    names = {p: n for n, p in model.named_parameters()}

    def state() -> ModelState:
        kept = {
            names[p]: entries for p, entries in chosen.state.items() if all(v is not None for v in entries.values())
        }
        return ModelState(params=dict(model.named_parameters()), optimizer=kept).clone()

    states, seconds = [], 0.0
    for _ in range(steps):
        states.append(state())
        began = time.perf_counter()
        labels = torch.randint(10, (64,))
        loss = nn.functional.cross_entropy(model(centres[labels] + torch.randn(64, 256)), labels)
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        seconds += time.perf_counter() - began
    return [*states, state()], seconds / steps


def step_record(index: int, names: tuple[str, ...]) -> Step:
    """A step as recording would make it, with the states of three generators."""
    rng = np.random.default_rng(index)
    torch.rand(1)
    draw = Draw(example_ids=rng.integers(0, 60_000, 64), random=capture(devices=False))
    options = {"lr": 0.05, "momentum": 0.9, "dampening": 0, "weight_decay": 5e-4, "nesterov": False, "foreach": None}
    return Step(
        index=index,
        epoch=0,
        global_step=index,
        micro_batches=(MicroBatch(batch_idx=index, draws=(draw,), stepped_with=capture(devices=False)),),
        groups=(ParamGroup(params=names, options=options),),
        loss=float(rng.random()),
    )


def measure(path: Path, states: Sequence[ModelState], steps: Sequence[Step], codec: str) -> dict[str, float]:
    """Write, read backwards, read the steps."""
    layouts = [Layout.of(s) for s in states]
    layouts = [layouts[1] if one == layouts[1] else one for one in layouts]
    raw = sum(v.nbytes for s in states[:-1] for *_, v in s.items())
    header = Header(run_id="0" * 16, created="", model="benchmark", optimizer="benchmark", parameters=())
    handed_over = 0.0
    cpu, began = time.process_time(), time.perf_counter()
    writer = LogWriter(path, header=header, codec=codec)
    for state, layout, step in zip(states, layouts, steps, strict=False):
        lanes = writer.lanes(layout)
        layout.pack(state, lanes)
        start = time.perf_counter()
        writer.put(step, layout, lanes)
        handed_over += time.perf_counter() - start
    writer.flush()
    written, cpu = time.perf_counter() - began, time.process_time() - cpu
    lanes = writer.lanes(layouts[-1])
    layouts[-1].pack(states[-1], lanes)
    writer.finish(layouts[-1], lanes)
    with RunLog.open(path) as log:
        began = time.perf_counter()
        for index in range(len(steps) - 1, -1, -1):
            log.state(index)
        back = time.perf_counter() - began
        began = time.perf_counter()
        for _ in log.steps(len(steps), 0):
            pass
        read = time.perf_counter() - began
        size = log.size_bytes
    return {
        "write MB/s": raw / written / 1e6,
        "write MB per CPU s": raw / cpu / 1e6,
        "reverse read MB/s": raw / back / 1e6,
        "ratio": raw / size,
        "put us": handed_over / len(steps) * 1e6,
        "write us/step": written / len(steps) * 1e6,
        "step read us": read / len(steps) * 1e6,
    }


def main() -> None:
    """Print one line per codec."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    states, seconds = trajectory(arguments.steps, arguments.width, arguments.optimizer)
    steps = [step_record(i, tuple(states[0].params)) for i in range(arguments.steps)]
    elements = sum(v.numel() for *_, v in states[-1].items())
    print(f"{arguments.optimizer}, {elements} elements per state, training {seconds * 1e6:.0f} us/step")
    directory = Path(tempfile.mkdtemp())
    try:
        for codec in ("none", "delta"):
            found = measure(directory / f"{codec}.tlog", states, steps, codec)
            print(f"{codec:6}", "  ".join(f"{name} {value:.2f}" for name, value in found.items()))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
