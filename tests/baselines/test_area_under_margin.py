"""The margin along the run against the formula, on the states of a training loop by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.baselines import AreaUnderMargin
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError, StateNotStoredError
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.state import ModelState
from tests.baselines.blobs import (
    CLASSES,
    WRONG,
    N,
    Net,
    descent,
    first_ids,
    log,
    points,
    rank,
    state,
    trained,
    training_set,
)


def recorded(stored: list[int] | None = None) -> tuple[MemoryLog, dict[int, Net]]:
    """A run with the states of some steps, and the models they are."""
    whole = log()
    models = {t: deepcopy(model) for t, model in enumerate(descent()) if stored is None or t in stored}
    states = {t: state(kept) for t, kept in models.items()}
    return MemoryLog(header=whole.header, steps=list(whole.steps(0, len(whole))), states=states), models


def margins(model: Net) -> Tensor:
    logits, labels = model(points()[0][:N]).tolist(), points()[1].tolist()
    own = [z[c] for z, c in zip(logits, labels[:N], strict=True)]
    best = [max(z[c] for c in range(CLASSES) if c != y) for z, y in zip(logits, labels[:N], strict=True)]
    return torch.tensor(own, dtype=torch.float64) - torch.tensor(best, dtype=torch.float64)


@pytest.mark.parametrize(
    ("baseline", "at"),
    [
        (AreaUnderMargin(states=3, share=0.4, batch_size=7), (55, 65, 75)),
        (AreaUnderMargin(states=2, share=1.0), (38, 75)),
        (AreaUnderMargin(), (54, 56, 58, 60, 62, 64, 66, 68, 69, 71, 73, 75)),
    ],
)
def test_mean_margin_by_the_formula(baseline: AreaUnderMargin, at: tuple[int, ...]) -> None:
    run, models = recorded()
    assert len(run) == 75
    chosen = baseline.state_indices(run)
    assert len(chosen) == len(at)
    assert np.abs(np.array(chosen) - at).max() <= 1  # halves may go either way
    expected = torch.stack([margins(models[t]) for t in chosen]).mean(0)
    indices = rank(baseline, record=run).values[:, 0]
    assert torch.allclose(indices, expected, rtol=0, atol=1e-10)


def test_wrong_labels_come_first() -> None:
    run, _ = recorded()
    assert set(WRONG) <= first_ids(rank(AreaUnderMargin(), record=run), len(WRONG) + 2)


@given(
    length=st.integers(1, 200),
    stored=st.sets(st.integers(0, 200)),
    states=st.integers(2, 30),
    share=st.floats(0.01, 1.0),
)
def test_states_are_stored_ones_of_the_share(length: int, stored: set[int], states: int, share: float) -> None:
    class Log:
        state_indices = np.array(sorted({t for t in stored if t < length} | {length}), np.int64)

        def __len__(self) -> int:
            return length

    there = [t for t in Log.state_indices if t >= length * (1 - share)]
    try:
        indices = AreaUnderMargin(states=states, share=share).state_indices(Log())  # type: ignore[arg-type]
    except StateNotStoredError:
        indices = (length,)
    assert indices[-1] == length
    assert list(indices) == sorted(set(indices))
    assert len(indices) <= min(states, len(there))
    assert set(indices) <= set(there)
    if states > 3 * length:
        assert len(indices) == len(there)


def test_too_few_states_are_refused_with_the_way_out() -> None:
    run, _ = recorded([0, 30, 75])
    assert AreaUnderMargin(share=0.7).state_indices(run) == (30, 75)
    with pytest.raises(StateNotStoredError, match=r"the last 30 % of 75 steps, got 1; record with keep='every_step'"):
        rank(AreaUnderMargin(), record=run)


@pytest.mark.parametrize("classes", [(1,), (0, 1, 2)])
def test_a_margin_that_is_no_number_is_named(classes: tuple[int, ...]) -> None:
    run, models = recorded([60, 75])
    bias = torch.zeros(CLASSES, dtype=torch.float64)
    bias[list(classes)] = -torch.inf
    bad = ModelState(params={**state(models[60]).params, "head.bias": bias})
    broken = MemoryLog(header=run.header, steps=list(run.steps(0, len(run))), states={60: bad, 75: state(trained())})
    with pytest.raises(NonFiniteError, match="along the run: at state 60 not all of them are finite"):
        rank(AreaUnderMargin(), record=broken)


class Certain(Net):
    """One class, to which all belong."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x)[:, :1], torch.zeros_like(y))


def test_one_class_has_no_margin() -> None:
    run, _ = recorded([60, 75])
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with pytest.raises(NonFiniteError, match="that of example 0 at state 60 is inf"):
        runner.run(Certain(), DataLoader(training_set(), batch_size=20), log=run, estimator=AreaUnderMargin())


def test_what_is_almost_sure_has_a_margin_still() -> None:
    """A probability that rounds to 1 has a logit."""

    class Sure(Net):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return F.binary_cross_entropy_with_logits(100 * self(x)[:, 0], (y > 0).double())

    run, models = recorded([60, 75])
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    loader = DataLoader(training_set(), batch_size=20)
    values = runner.run(Sure(), loader, log=run, estimator=AreaUnderMargin()).values[:, 0]
    x, y, _ = points()
    signs = 2.0 * (y[:N] > 0) - 1
    expected = torch.stack([100 * model(x[:N])[:, 0] for model in models.values()]).mean(0).detach() * signs
    assert float(expected.abs().max()) > 50
    assert torch.allclose(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{"states": 1}, {"share": 0.0}, {"share": 1.5}])
def test_impossible_settings(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="2 states or more and a share above 0 and up to 1"):
        replace(AreaUnderMargin(), **changes)  # type: ignore[arg-type]
