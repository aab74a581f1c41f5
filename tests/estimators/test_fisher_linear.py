"""Fisher linear scores against their formula with dense algebra, and the suite that ships."""

from __future__ import annotations

import pytest
import torch

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.curvature import EmpiricalDiagonal, ExactDiagonal, Fisher, KroneckerFactors
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators import FisherLinear
from lightning_sgdinf.query import SubsetLoss
from lightning_sgdinf.testing.runs import small_run
from tests.curvature.test_fisher import example_gradients
from tests.updates.test_extrapolated import opened


@pytest.mark.parametrize("fisher", [ExactDiagonal(), EmpiricalDiagonal(), KroneckerFactors()])
def test_scores_are_the_formula(fisher: Fisher) -> None:
    small, ids = small_run(), (1, 4, 8)
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    scores = runner.run(
        small.model,
        small.train,
        small.validation,
        log=small.log,
        query=SubsetLoss(ids),
        estimator=FisherLinear(fisher, damping=0.2),
    )
    with opened(small) as run:
        inverse = fisher.of(run).solve(torch.eye(run.objective.vector.size, dtype=torch.float64), 0.2)
        held_out = small_run()
    held_out.train.dataset.tensors = small.validation.dataset.tensors
    gradient = example_gradients(held_out, lambda y: y)[0][list(ids)].mean(0)
    expected = example_gradients(small, lambda y: y)[0] @ inverse @ gradient / 13
    assert (scores.values[:, 0] - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert scores.queries == ("mean loss of 3 validation examples",)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"damping": 0.0}, {"batch_size": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            FisherLinear(**wrong)
