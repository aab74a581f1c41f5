"""Runs made up for the tests of the log: every value is a function of the step's number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import lightning_sgdinf
from lightning_sgdinf.log import Clip, Draw, Header, LogWriter, MicroBatch, ParamGroup, Step
from lightning_sgdinf.state import Layout, ModelState

NAN = float("nan")


def make_header(**changes: object) -> Header:
    """A header with something in every attribute."""
    values: dict[str, object] = {
        "run_id": "5eed" * 4,
        "created": "2020-01-01T00:00:00+00:00",
        "model": "nets.Modell-ä",
        "optimizer": "torch.optim.sgd.SGD",
        "parameters": (("w", (3, 4), "float32"), ("größe", (), "float64")),
        "constant_digest": 7,
        "precision": "bf16-mixed",
        "keep": "every(2)",
        "datasets": (("data.Images", 100),),
        "environment": {"torch": "2", "threads": 1, "flags": [True, None]},
        "extra": {"note": NAN},
    }
    return Header(**(values | changes))  # type: ignore[arg-type]


def make_state(t: int, *, size: int = 40, momentum: bool = True) -> ModelState:
    """State ``t``: neighbouring states are near each other, as in training."""
    generator = torch.Generator().manual_seed(5)
    start, slope = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    weights = start + 1e-3 * t * slope
    optimizer = {"w": {"momentum_buffer": slope * 0.9**t, "step": torch.tensor(float(t))}} if momentum else {}
    return ModelState(
        params={"w": weights.view(4, -1), "größe": torch.tensor(1.0 / (t + 1), dtype=torch.float64)},
        buffers={
            "batches": torch.tensor(t),
            "half": weights[:3].bfloat16(),
            "mask": torch.tensor([t % 2 == 0, True]),
            "nothing": torch.empty(0),
        },
        optimizer=optimizer,
    )


def make_step(t: int, *, groups: int = 1) -> Step:
    """Step ``t``: several micro-batches and draws, empty ids, a NaN now and then."""
    ids = np.arange(t, t + 4 + t % 3, dtype=np.int64)
    draws = (
        Draw(example_ids=ids, random={"torch": bytes([t % 256]) * 40, "numpy": b"same" * 10}, digest=2**32 - 1 - t),
        Draw(loader=1, example_ids=ids[:0], single=True),
    )
    options = {"lr": NAN if t == 3 else 0.1 / (t + 1), "momentum": 0.9, "nesterov": False, "betas": [0.9, 0.999]}
    return Step(
        index=t,
        epoch=t // 10,
        global_step=2 * t,
        micro_batches=(
            MicroBatch(batch_idx=2 * t, draws=draws, transferred_with={"python": b"p" * 20}),
            MicroBatch(batch_idx=2 * t + 1, draws=(), stepped_with={"torch": bytes([t % 256]) * 40}),
        ),
        groups=tuple(ParamGroup(params=("w", "größe"), options=options | {"foreach": None}) for _ in range(groups)),
        accumulation=2,
        clip=Clip(0.5, "value") if t % 2 else None,
        eval_modules=("encoder.bn",) if t > 2 else (),
        average=(0.99, 0.01) if t > 4 else None,
        loss=NAN if t == 1 else 1.5**-t,
        changed=("param w",) if t == 2 else (),
    )


def write_run(
    path: Path,
    steps: int,
    *,
    state: Callable[[int], ModelState] = make_state,
    step: Callable[[int], Step] = make_step,
    keep: Callable[[int], bool] = lambda t: True,
    header: Header | None = None,
    finish: bool = True,
    **options: object,
) -> LogWriter:
    """Record ``steps`` made-up steps; without ``finish`` the writer is left open and flushed."""
    writer = LogWriter(path, header=header or make_header(), **options)  # type: ignore[arg-type]
    for t in range(steps):
        put(writer, state(t), step(t), store=keep(t))
    if not finish:
        writer.flush()
        return writer
    last = state(steps)
    layout = Layout.of(last)
    flat = writer.take_buffers(layout)
    layout.pack(last, flat)
    writer.finish(layout, flat, average={"w": torch.full((2,), 0.5)})
    return writer


def put(writer: LogWriter, state: ModelState, step: Step, *, store: bool = True) -> None:
    """Pack and put."""
    layout = Layout.of(state)
    flat = writer.take_buffers(layout)
    layout.pack(state, flat)
    writer.put(step, layout, flat, store=store)


def overwrite(path: Path, content: bytes) -> None:
    """Change a file, even one that is being written."""
    path.chmod(0o644)
    path.write_bytes(content)


def assert_same_state(present: ModelState, expected: ModelState) -> None:
    """Bit for bit, NaN included."""
    pairs = list(zip(present.items(), expected.items(), strict=True))
    for (*place, value), (*expected_place, expected_value) in pairs:
        assert place == expected_place
        assert value.dtype == expected_value.dtype
        assert value.shape == expected_value.shape
        if value.numel():
            bits = [v.contiguous().reshape(-1).view(torch.uint8) for v in (value, expected_value)]
            assert torch.equal(*bits), place


def described(step: object) -> str:
    """A record as text that is equal for equal records, NaN included."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.tolist()
        if isinstance(value, dict):
            return sorted((k, plain(v)) for k, v in value.items())
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        if hasattr(value, "__dataclass_fields__"):
            return [(name, plain(getattr(value, name))) for name in value.__dataclass_fields__]
        return repr(value)

    return repr(plain(step))


def run_script(
    body: str, *arguments: object, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python text in a fresh interpreter, with this module at hand as ``cases``."""
    return run_python(PRELUDE + body, *arguments, timeout=timeout, **environment)


def run_python(
    text: str, *arguments: object, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python text in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


PRELUDE = f"""
import sys, types
package = types.ModuleType("lightning_sgdinf")
package.__path__, package.__file__ = [{str(Path(lightning_sgdinf.__file__).parent)!r}], {lightning_sgdinf.__file__!r}
sys.modules["lightning_sgdinf"] = package
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.log import cases
"""
"""Makes ``cases`` known; of the package only ``lightning_sgdinf.log`` is imported, which saves seconds."""
