"""What every campaign of faults needs: a count, the truth, and children to do things in."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from lightning_sgdinf.errors import LogNotFoundError
from lightning_sgdinf.log.reader import RunLog
from lightning_sgdinf.log.writer import LogWriter
from lightning_sgdinf.state import Layout, ModelState
from tests.log.cases import described, make_step

PATIENCE = 300  # seconds for a child: whoever hangs, hangs for ever; a busy machine is slow


@dataclass
class Tally:
    """The outcome of a campaign.

    Attributes:
        name: Of the campaign.
        faults: How many were done.
        noticed: After how many of them an error was raised, where that is what is to happen.
        harmless: After how many of them all could be read, and was right.
        lost: Descriptions of what should have been there, or was wrong.
        remark: What could not be done here.
    """

    name: str
    faults: int = 0
    noticed: int = 0
    harmless: int = 0
    lost: list[str] = field(default_factory=list)
    remark: str = ""


def state(t: int) -> ModelState:
    """Small; the optimizer's state comes with the second step, so that every log has two layouts."""
    weights, slope = START + 1e-3 * t * SLOPE, {"momentum_buffer": SLOPE * 0.9**t}
    return ModelState(params={"w": weights}, buffers={"batches": torch.tensor(t)}, optimizer={"w": slope} if t else {})


START, SLOPE = torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40).sin()


@cache
def state_bytes(t: int) -> bytes:
    return bytes_of(state(t))


def bytes_of(state: ModelState) -> bytes:
    parts = []
    for part, name, key, value in state.items():
        parts.append(f"{part} {name} {key} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            parts.append(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return b"".join(parts)


@cache
def step_text(t: int) -> str:
    return described(make_step(t))


def assert_right(path: Path, flushed: int) -> int:
    """Everything that is in a log is right, and at least ``flushed`` steps are; the number of steps."""
    try:
        log = RunLog.open(path)
    except LogNotFoundError:
        assert not flushed, f"no log, but {flushed} steps had been flushed"
        return 0
    with log:
        steps = len(log) + (not log.finished)
        assert steps >= flushed, f"{steps} steps, but {flushed} had been flushed"
        for step in log.steps(0, len(log)):
            assert described(step) == step_text(step.index), f"step {step.index} is wrong"
        for index in log.state_indices[::-1].tolist():
            assert bytes_of(log.state(index)) == state_bytes(index), f"state {index} is wrong"
    return steps


def in_child(action: Callable[[], None]) -> int:
    """Do it in a child; its exit status, or minus the signal that ended it (``SIGALRM`` if it took too long)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the child even where it waits in C
            signal.alarm(PATIENCE)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            if code:
                os._exit(code)
            atexit._run_exitfuncs()  # as at the end of an interpreter, and then HDF5's own
            ctypes.CDLL(None).exit(0)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def judged(tally: Tally, what: str, action: Callable[[], None]) -> None:
    """Count a fault; what goes wrong is lost."""
    tally.faults += 1
    if status := in_child(action):
        tally.lost.append(f"{what}: the child ended with {status}")


def put(writer: LogWriter, t: int) -> None:
    layout = Layout.of(state(t))
    flat = writer.take_buffers(layout)
    layout.pack(state(t), flat)
    writer.put(make_step(t), layout, flat)


def finish(writer: LogWriter, t: int) -> None:
    layout = Layout.of(state(t))
    flat = writer.take_buffers(layout)
    layout.pack(state(t), flat)
    writer.finish(layout, flat)
