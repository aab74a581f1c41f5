"""A training of a library's module, taken with and without the recorder, and scored."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf import InfluenceRunner, RunLog, Scores, TrajectoryRecorder

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(kw_only=True)
class Fitted:
    """What a fit leaves: the module, its Trainer, and its data as a runner takes them."""

    module: Any
    trainer: Any
    train: Any = None
    validation: Any = None
    datamodule: Any = None


Fit = Callable[[list[Any]], Fitted]
"""Trains with some more callbacks."""


def scored(fit: Fit, log: Path, *, recorder: Any = None, **settings: Any) -> tuple[Fitted, Scores]:
    """Train with and without the recorder, expect the same to the bit, and score with the default certificate.

    Args:
        fit: Trains.
        log: Where to record.
        recorder: Arguments of the recorder.
        settings: Arguments of the runner.
    """
    plain, recorded = _seeded(fit, []), _seeded(fit, [TrajectoryRecorder(log, **(recorder or {}))])
    assert plain == (*recorded[:-1], None), "the recorder changed the training"
    fitted: Fitted = recorded[-1]
    before = _bits(fitted.module)
    runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
    data = (fitted.train, fitted.validation, fitted.datamodule)
    scores = runner.run(fitted.module, *data, log=log)
    assert _bits(fitted.module) == before, "the runner changed the model"
    expect_certified(scores)
    return fitted, scores


def expect_certified(scores: Scores) -> None:
    """Every step led where it was recorded to lead, and central differences of a real re-run agree."""
    certificate = scores.certificate
    assert certificate is not None
    steps, gradient = certificate.step_replay, certificate.gradient_check
    assert steps is not None
    assert steps.largest_deviation < 1e-2
    assert gradient is not None
    assert gradient.relative_error <= gradient.tolerance
    assert max(map(abs, gradient.measured)) > 0, "the test is degenerate"


def start_and_batches(log: Path) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Return the initial parameters and the ids of the examples of each step, one batch a step."""
    with RunLog.open(log) as run:
        batches = [run.step(t).example_ids.tolist() for t in range(len(run))]
        return {n: v.clone() for n, v in run.state(0).params.items()}, batches


def _seeded(fit: Fit, callbacks: list[Any]) -> tuple[Any, ...]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    fitted = fit(callbacks)
    generators = (torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate())
    metrics = {name: repr(float(value)) for name, value in fitted.trainer.callback_metrics.items()}
    return _bits(fitted.module), metrics, generators, fitted if callbacks else None


def _bits(module: Any) -> dict[str, bytes]:
    tensors = {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}
    return {n: t.detach().cpu().contiguous().numpy().tobytes() for n, t in tensors.items()}
