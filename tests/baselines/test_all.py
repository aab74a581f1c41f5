"""Properties that hold for every baseline."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, baselines
from lightning_sgdinf.baselines import (
    AreaUnderMargin,
    Autoencoder,
    Baseline,
    ConfidentLearning,
    IsolationForest,
    LocalOutlierFactor,
    LossBaseline,
    MarginBaseline,
    OneClassSvm,
    RandomBaseline,
)
from lightning_sgdinf.errors import (
    ConfigurationError,
    MissingExtraError,
    NonFiniteError,
    SgdInfluenceError,
    UntappedLossError,
)
from lightning_sgdinf.state import ModelState
from tests.baselines.blobs import BATCH, N, Net, Shaking, log, rank, state, trained, training_set

ALL = [
    AreaUnderMargin(states=2, share=1.0),
    Autoencoder(epochs=2),
    Autoencoder(epochs=2, compat=True),
    ConfidentLearning(folds=2),
    IsolationForest(trees=5),
    IsolationForest(trees=5, compat=True),
    LocalOutlierFactor(),
    LossBaseline(),
    MarginBaseline(),
    OneClassSvm(),
    OneClassSvm(exact_up_to=0),
    RandomBaseline(),
]


def names(baseline: Any) -> str:
    return repr(baseline)[:40]


class Restless(Shaking):
    """Moves at random and says nothing of it."""

    unaugmented = None  # type: ignore[assignment]
    augmenting = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name in ("unaugmented", "augmenting"):
            raise AttributeError(name)
        return super().__getattribute__(name)


def global_state() -> tuple[Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("baseline", ALL, ids=names)
def test_the_seed_decides_and_global_generators_stay(baseline: Baseline) -> None:
    if isinstance(baseline, ConfidentLearning):
        pytest.importorskip("cleanlab")
    # Only cross-validation takes recorded steps again, for which the data must be those of training.
    data = None if isinstance(baseline, ConfidentLearning) else Restless(*training_set().tensors, size=0.1)
    rankings = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = global_state()
        rankings.append(rank(baseline, dataset=data).values)
        after = global_state()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert torch.equal(*rankings)
    assert rankings[0].shape == (N, 1)
    assert rankings[0].dtype == torch.float64
    assert rankings[0].unique().numel() > 1


@pytest.mark.parametrize("baseline", [IsolationForest(trees=5), LossBaseline(), MarginBaseline()], ids=names)
def test_a_final_model_that_is_no_number_is_said(baseline: Baseline) -> None:
    broken = state(trained())
    broken.params["body.0.bias"][0] = float("nan")
    with pytest.raises(NonFiniteError):
        rank(baseline, record=log(broken))


@pytest.mark.parametrize(
    ("baseline", "module", "extra"),
    [
        (IsolationForest(), "sklearn.ensemble", "cli"),
        (OneClassSvm(), "sklearn.svm", "cli"),
        (OneClassSvm(exact_up_to=0), "sklearn.kernel_approximation", "cli"),
        (LocalOutlierFactor(), "sklearn.neighbors", "cli"),
        (ConfidentLearning(), "cleanlab.rank", "cleanlab"),
    ],
    ids=names,
)
def test_a_missing_package_is_answered_with_its_command(
    baseline: Baseline, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install \"lightning-sgdinf\[{extra}\]\""):
        rank(baseline)


def test_averaged_weights_are_the_model_that_is_looked_at() -> None:
    """The last state differs from what a weight-averaging callback left."""
    run = log(ModelState(params={n: v + 1 for n, v in state(trained()).params.items()}))
    averaged = type(run)(
        header=run.header,
        steps=list(run.steps(0, len(run))),
        states={t: run.state(int(t)) for t in run.state_indices},
        average=state(trained()).params,
    )
    assert torch.equal(rank(MarginBaseline(), record=averaged).values, rank(MarginBaseline()).values)
    assert not torch.allclose(rank(MarginBaseline(), record=run).values, rank(MarginBaseline()).values)


def test_every_one_can_be_chosen(repository: Path) -> None:
    files = (repository / "conf" / "estimator").glob("*.yaml")
    named = {word for file in files for word in file.read_text(encoding="utf-8").split()}
    known = [
        name for name in dir(baselines) if hasattr(getattr(baselines, name), "rank") and not name.startswith("Baseline")
    ]
    assert len(known) == 10
    assert [name for name in known if f"lightning_sgdinf.baselines.{name}" not in named] == []


@pytest.mark.parametrize(
    ("baseline", "error", "says"),
    [
        (
            MarginBaseline(),
            ConfigurationError,
            r"labels from 0 to 2, got -100 for example 7; an example whose",
        ),
        (AreaUnderMargin(states=2, share=1.0), ConfigurationError, "got -100 for example 7"),
        (ConfidentLearning(folds=2), ConfigurationError, "got -100 for example 7"),
        (LossBaseline(), NonFiniteError, "training example 7 alone has no finite loss .* ignores its label"),
    ],
    ids=names,
)
def test_a_label_that_the_loss_ignores_is_named(baseline: Baseline, error: type[SgdInfluenceError], says: str) -> None:
    x, y = training_set().tensors
    ignored = TensorDataset(x, torch.where(torch.arange(N) == 7, -100, y))
    with pytest.raises(error, match=says):
        rank(baseline, dataset=ignored)


class Penalised(Net):
    """Its loss has a part that no weight of an example reaches."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        return F.cross_entropy(logits, batch[1]) + 1e-3 * (logits**2).mean()


def test_held_out_examples_have_no_part_in_training() -> None:
    loader = DataLoader(training_set(), batch_size=BATCH)
    with pytest.raises(UntappedLossError):
        InfluenceRunner(accelerator="cpu", progress=False).run(
            Penalised(), loader, log=log(), estimator=ConfidentLearning(folds=2)
        )
