"""Baselines that look at labels against formulas, cleanlab and training loops by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.baselines import ConfidentLearning, LossBaseline, MarginBaseline
from lightning_sgdinf.errors import ConfigurationError, ModelMismatchError, NonFiniteError, StateNotStoredError
from tests.baselines.blobs import (
    BATCH,
    CLASSES,
    ODD,
    WRONG,
    N,
    Net,
    Shaking,
    first_ids,
    log,
    make,
    points,
    rank,
    state,
    train,
    trained,
    training_set,
)

cleanlab_rank = pytest.importorskip("cleanlab.rank")
cleanlab_filter = pytest.importorskip("cleanlab.filter")


def probabilities(model: nn.Module) -> Tensor:
    logits = model(points()[0][:N]).detach()
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def test_margin_by_the_formula() -> None:
    p, y = probabilities(trained()).tolist(), points()[1].tolist()
    expected = [p[j][y[j]] - max(p[j][c] for c in range(CLASSES) if c != y[j]) for j in range(N)]
    values = rank(MarginBaseline(batch_size=7)).values[:, 0]
    assert torch.allclose(values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("baseline", [MarginBaseline(), LossBaseline(), ConfidentLearning(folds=3)])
def test_wrong_labels_come_first(baseline: Any) -> None:
    # The odd ones are hard as well; the wrong ones are all among the first.
    assert set(WRONG) <= first_ids(rank(baseline), len(WRONG) + len(ODD))


@pytest.mark.parametrize("baseline", [MarginBaseline(), LossBaseline()])
def test_augmentation_is_left_out(baseline: Any) -> None:
    shaking = Shaking(*training_set().tensors)
    assert torch.equal(rank(baseline, dataset=shaking).values, rank(baseline).values)


class Binary(Net):
    """One logit or probability, and the losses of two classes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2 if form == "nll" else 1).double()
        self.form = form

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        if self.form == "nll":
            return nn.NLLLoss()(torch.log_softmax(out, 1), y)
        if self.form == "bce":
            return F.binary_cross_entropy(torch.sigmoid(out[:, 0]), y.double())
        return nn.BCEWithLogitsLoss()(out, y.double()[:, None])


def binary(form: str, baseline: Any) -> tuple[Tensor, Binary]:
    torch.manual_seed(5)
    model = Binary(form)
    names = tuple(n for n, _ in model.named_parameters())
    run = log(state(model), first=False)
    header = run.header.__class__(
        **{
            **{k: getattr(run.header, k) for k in run.header.__dataclass_fields__},
            "parameters": tuple((n, tuple(p.shape), "float64") for n, p in model.named_parameters()),
        }
    )
    assert len(names) == 4
    run = type(run)(header=header, steps=list(run.steps(0, len(run))), states={len(run): state(model)})
    data = TensorDataset(points()[0][:N], points()[1][:N] % 2)
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    loader = DataLoader(data, batch_size=BATCH)
    return runner.run(Binary(form), loader, log=run, estimator=baseline).values[:, 0], model


@pytest.mark.parametrize("form", ["nll", "bce", "logits"])
def test_every_classification_loss_shows_the_probabilities(form: str) -> None:
    values, model = binary(form, MarginBaseline())
    out = model(points()[0][:N]).detach()
    second = torch.softmax(out, 1)[:, 1] if form == "nll" else 1 / (1 + torch.exp(-out[:, 0]))
    sign = 2.0 * (points()[1][:N] % 2) - 1
    assert torch.allclose(values, sign * (2 * second - 1), rtol=0, atol=1e-12)


class Regression(Net):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x)[:, 0], y.double())


def test_a_loss_that_shows_no_classes_is_refused_with_the_way_out() -> None:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    loader = DataLoader(training_set(), batch_size=BATCH)
    with pytest.raises(ConfigurationError, match=r"no such call'?; rank by LossBaseline, or give"):
        runner.run(Regression(), loader, log=log(), estimator=MarginBaseline())
    given = ConfidentLearning(probabilities=probabilities(trained()), labels=points()[1][:N])
    assert runner.run(Regression(), loader, log=log(), estimator=given).values.shape == (N, 1)


@pytest.mark.parametrize("quality", ["self_confidence", "normalized_margin", "confidence_weighted_entropy"])
def test_given_probabilities_are_judged_as_cleanlab_does(quality: Any) -> None:
    p, y = probabilities(trained()).numpy(), points()[1][:N].numpy()
    expected = cleanlab_rank.get_label_quality_scores(y, p, method=quality)
    values = rank(ConfidentLearning(quality=quality, probabilities=p)).values[:, 0].numpy()
    assert np.allclose(values, expected, rtol=1e-9, atol=0)


def test_what_cleanlab_calls_wrong_comes_first() -> None:
    p, y = probabilities(trained()).numpy(), points()[1][:N].numpy()
    issues = cleanlab_filter.find_label_issues(y, p, filter_by="prune_by_noise_rate", n_jobs=1)
    assert 0 < issues.sum() < N, "the test is degenerate"
    scores = rank(ConfidentLearning(probabilities=p, issues="prune_by_noise_rate"))
    assert first_ids(scores, int(issues.sum())) == set(np.flatnonzero(issues).tolist())
    quality = cleanlab_rank.get_label_quality_scores(y, p)
    assert np.allclose(scores.values[:, 0].numpy(), quality - issues, rtol=1e-9, atol=1e-12)


def expected_folds() -> Tensor:
    """Probabilities by models that a loop by hand trained without the fold."""
    y = points()[1][:N]
    held_out_values = torch.zeros(N, CLASSES, dtype=torch.float64)
    for _, held_out in StratifiedKFold(3, shuffle=True, random_state=2).split(np.zeros(N), y.numpy()):
        keep = torch.ones(N, dtype=torch.bool)
        keep[held_out] = False
        held_out_values[held_out] = probabilities(train(keep))[held_out]
    return held_out_values


def test_folds_are_the_recorded_run_without_their_examples() -> None:
    expected = cleanlab_rank.get_label_quality_scores(points()[1][:N].numpy(), expected_folds().numpy())
    values = rank(ConfidentLearning(folds=3, seed=2, batch_size=11)).values[:, 0].numpy()
    assert np.allclose(values, expected, rtol=1e-8, atol=1e-12)
    within = cleanlab_rank.get_label_quality_scores(points()[1][:N].numpy(), probabilities(trained()).numpy())
    assert np.abs(values - within).max() > 0.05, "the test is degenerate"


def test_folds_by_a_function_that_trains() -> None:
    given: list[set[int]] = []

    def fit(dataset: Any) -> Net:
        kept = torch.zeros(N, dtype=torch.bool)
        kept[list(dataset.indices)] = True
        given.append(set(dataset.indices))
        return train(kept)

    by_function = rank(ConfidentLearning(folds=3, seed=2, fit=fit), record=log(first=False))
    assert torch.allclose(by_function.values, rank(ConfidentLearning(folds=3, seed=2)).values, rtol=1e-8)
    assert len(given) == 3
    assert all(len(ids) == 40 for ids in given)
    assert not set.intersection(*given)


def test_a_record_without_its_start_is_refused_with_the_way_out() -> None:
    with pytest.raises(StateNotStoredError, match=r"keep='every_step', or give fit="):
        rank(ConfidentLearning(), record=log(first=False))


def test_another_model_from_the_function_is_refused() -> None:
    def other(dataset: Any) -> nn.Module:
        return nn.Linear(6, 3).double()

    with pytest.raises(ModelMismatchError, match=r"body\.0\.weight"):
        rank(ConfidentLearning(fit=other))

    frozen = make()
    frozen.head.bias.requires_grad_(False)
    final = state(frozen)
    run = log(final, first=False)
    fields = {k: getattr(run.header, k) for k in run.header.__dataclass_fields__}
    fields["parameters"] = tuple(p for p in run.header.parameters if p[0] != "head.bias")
    part = type(final)(params={n: v for n, v in final.params.items() if n != "head.bias"})
    run = type(run)(header=type(run.header)(**fields), steps=list(run.steps(0, len(run))), states={len(run): part})
    with pytest.raises(ModelMismatchError, match=r"'head.bias' is not trained and has other values"):
        rank(ConfidentLearning(fit=lambda dataset: train()), record=run)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p[:-1], ConfigurationError, r"expected shape \[60, C\]"),
        (lambda p: p[:, :2], ConfigurationError, "above the largest label 2"),
        (lambda p: p * 2, ConfigurationError, "sum to 1"),
        (lambda p: p - 1e-2 * torch.tensor([1.0, 0, -1]), ConfigurationError, "sum to 1"),
        (lambda p: p.index_fill(0, torch.tensor([5]), float("nan")), NonFiniteError, "example 5"),
    ],
)
def test_probabilities_that_are_none_are_refused(change: Any, error: type[Exception], message: str) -> None:
    given = change(probabilities(trained()).clamp_min(1e-6))
    with pytest.raises(error, match=message):
        rank(ConfidentLearning(probabilities=given))


def test_labels_that_are_none_are_refused() -> None:
    given = probabilities(trained())
    for labels in (points()[1][:5], points()[1][:N].double(), points()[1][:N] - 1):
        with pytest.raises(ConfigurationError, match="60 whole numbers from 0 on"):
            rank(ConfidentLearning(probabilities=given, labels=labels))


@pytest.mark.parametrize(
    "arguments", [{"folds": 1}, {"fit": train, "probabilities": [[1.0]]}, {"labels": [0]}, {"folds": 31}]
)
def test_arguments_that_do_not_go_together_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        rank(ConfidentLearning(**arguments))
