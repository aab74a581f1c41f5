"""Rankings that do not walk, against formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.baselines import IsolationForest, LossBaseline, MarginBaseline, RandomBaseline
from lightning_sgdinf.errors import DataMismatchError, NonFiniteError
from tests.adjoint.cases import BY_NAME, Recorded, edited, record


def rank(run: Recorded, baseline: Any, **more: Any) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    return runner.run(run.module, run.train, log=more.get("log", run.log), estimator=baseline)


@pytest.mark.parametrize("name", ["dampened", "batchnorm", "embedding", "maximize"])
@pytest.mark.parametrize("size", [5, 500])
def test_minus_the_loss_at_the_end_in_eval_mode(name: str, size: int) -> None:
    case = BY_NAME.get(name) or BY_NAME["sgd-value"]
    run = record(case)
    state = run.log.state(len(run.log))
    x, y = run.train.dataset.tensors
    buffers = {n: b.double() for n, b in state.buffers.items()}
    logits, _ = case.twice.twin(state.params, buffers, x, False, 0)
    losses = torch.logsumexp(logits, 1) - logits.gather(1, y[:, None])[:, 0]
    losses = losses + run.module.penalty * sum((p**2).sum() for p in state.params.values())
    ranking = rank(run, LossBaseline(batch_size=size))
    assert torch.allclose(ranking.values[:, 0], -losses, rtol=1e-12)
    assert (ranking.queries, ranking.better) == (("minus the training loss",), ("order",))
    assert ranking.certificate is not None
    assert ranking.certificate.notes == ("minus the training loss: a ranking only, not a predicted change.",)


def test_a_loss_that_is_no_number_names_the_example() -> None:
    run = record(BY_NAME["momentum"])
    state = run.log.state(9)
    state.params["net.2.bias"][0] = float("nan")
    with pytest.raises(NonFiniteError):
        rank(run, LossBaseline(), log=edited(run.log, states={9: state}))


def test_random_order_depends_on_its_seed_alone() -> None:
    run = record(BY_NAME["momentum"])
    before = torch.get_rng_state()
    one, same, other = (rank(run, RandomBaseline(seed)).values for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (12, 1)
    assert bool(((one >= -1) & (one < 0)).all())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("baseline", [LossBaseline(), MarginBaseline(), IsolationForest(features="inputs")])
@pytest.mark.parametrize("change", ["order", "label"])
def test_other_examples_than_those_of_the_record_are_refused(baseline: Any, change: str) -> None:
    """As when a data module splits its data anew each time it is set up: as many, of the same form."""
    run = record(BY_NAME["momentum"])
    x, y = run.train.dataset.tensors
    before = torch.get_rng_state()
    if change == "order":
        data = TensorDataset(x.flip(0), y.flip(0))
    else:
        data = TensorDataset(x, torch.where(torch.arange(len(y)) == 7, (y + 1) % 3, y))
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with pytest.raises(DataMismatchError, match="differs from the one trained on"):
        runner.run(run.module, DataLoader(data, batch_size=4), log=run.log, estimator=baseline)
    runner.run(run.module, DataLoader(data, batch_size=4), log=run.log, estimator=RandomBaseline())  # looks at none
    assert torch.equal(before, torch.get_rng_state())
