"""Two processes, started by the runner itself, against one."""

from __future__ import annotations

import warnings

import pytest
import torch

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.testing import relative_error
from lightning_sgdinf.testing.runs import SmallRun, small_run


def score(run: SmallRun, devices: int) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", devices=devices, progress=False)
    return runner.run(run.model, run.train, run.validation, log=run.log)


def test_two_processes_share_out_the_rows_of_each_batch() -> None:
    run = small_run()
    alone = score(run, 1)
    before = [p.detach().clone() for p in run.model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of processes that are started: their imports, their forks
        together = score(run, 2)
    assert relative_error(together.values, alone.values) < 1e-12
    joint, expected = together.certificate, alone.certificate
    assert joint is not None
    assert expected is not None
    assert joint.notes == expected.notes, "rows were not shared out"
    assert joint.step_replay.steps == expected.step_replay.steps
    assert joint.gradient_check.relative_error < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_what_cannot_be_sent_to_other_processes_is_named() -> None:
    run = small_run()
    run.model.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigurationError, match="can be pickled, to send them to the other processes"):
        score(run, 2)
