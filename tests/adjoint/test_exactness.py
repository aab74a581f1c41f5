"""The walk against the two oracles, on every case of the table."""

from __future__ import annotations

import pytest
import torch

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.testing import central_differences, relative_error
from tests.adjoint.cases import BY_NAME, Case, query_after, record, unrolled


def walked(case: Case) -> torch.Tensor:
    run = record(case)
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    return runner.run(run.module, run.train, run.validation, log=run.log).values


@pytest.mark.parametrize("name", BY_NAME)
def test_equals_autograd_through_the_whole_run_and_training_again(name: str) -> None:
    case = BY_NAME[name]
    walk, exact = walked(case), unrolled(case)
    assert exact.abs().max() > 1e-4, "the test is degenerate"
    assert relative_error(walk, exact) < case.tolerance
    strongest = walk[:, 0].abs().argsort(descending=True)
    ids = [int(strongest[0])]
    again = central_differences(query_after(case), case.batching.examples, ids=ids)
    assert float((again - walk[ids]).abs().max() / walk.abs().max()) < 1e-6
