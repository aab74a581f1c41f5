"""Outlier baselines against scikit-learn on features by the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest as Forest
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM
from sklearn.neighbors import LocalOutlierFactor as Factor
from sklearn.pipeline import make_pipeline
from sklearn.svm import OneClassSVM

from lightning_sgdinf.baselines import IsolationForest, LocalOutlierFactor, OneClassSvm
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from tests.baselines.blobs import ODD, N, Shaking, first_ids, hidden, points, rank, training_set


def features(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Of training and validation examples."""
    x = points()[0]
    values = x.numpy() if kind == "inputs" else hidden(x)
    return values[:N], values[N:]


def forest(train: np.ndarray, fitted: np.ndarray, seed: int) -> np.ndarray:
    return Forest(random_state=seed, n_estimators=20).fit(fitted).score_samples(train)


def exact(train: np.ndarray, fitted: np.ndarray, seed: int) -> np.ndarray:
    return OneClassSVM().fit(fitted).score_samples(train)


def stochastic(train: np.ndarray, fitted: np.ndarray, seed: int) -> np.ndarray:
    gamma = 1 / (fitted.shape[1] * fitted.var())
    columns = Nystroem(gamma=gamma, n_components=15, random_state=seed)
    return make_pipeline(columns, SGDOneClassSVM(random_state=seed)).fit(fitted).score_samples(train)


def factor(train: np.ndarray, fitted: np.ndarray, seed: int) -> np.ndarray:
    if fitted is train:
        return Factor(n_neighbors=7).fit(train).negative_outlier_factor_
    return Factor(n_neighbors=7, novelty=True).fit(fitted).score_samples(train)


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "forest": (IsolationForest, forest, {"trees": 20}),
    "exact": (OneClassSvm, exact, {}),
    "stochastic": (OneClassSvm, stochastic, {"exact_up_to": 0, "columns": 15}),
    "factor": (LocalOutlierFactor, factor, {"neighbours": 7}),
}


@pytest.mark.parametrize("kind", ["penultimate", "inputs", "body.1"])
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_scikit_learn(case: str, kind: str) -> None:
    make, oracle, options = CASES[case]
    train, _ = features(kind)
    values = rank(make(features=kind, seed=4, batch_size=13, **options), validate=False).values[:, 0].numpy()
    assert np.allclose(values, oracle(train, train, 4), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_compat_fits_on_the_validation_examples(case: str) -> None:
    make, oracle, options = CASES[case]
    train, validation = features("penultimate")
    fitted = np.concatenate([validation] * 20) if case == "forest" else validation
    values = rank(make(compat=True, seed=4, **options)).values[:, 0].numpy()
    assert np.allclose(values, oracle(train, fitted, 4), rtol=1e-9, atol=1e-12)
    assert not np.allclose(values, oracle(train, train, 4), rtol=1e-3), "the test is degenerate"
    with pytest.raises(ConfigurationError, match="validation loader"):
        rank(make(compat=True, **options), validate=False)


@pytest.mark.parametrize("case", CASES)
def test_odd_inputs_come_first(case: str) -> None:
    make, _, options = CASES[case]
    # A boundary around half of all has many examples beyond it; the two odd ones are the furthest.
    options = options | ({"gamma": 0.01, "nu": 0.1} if make is OneClassSvm else {})
    assert first_ids(rank(make(features="inputs", **options), validate=False), 2) == set(ODD)


def test_augmentation_is_left_out_but_for_the_published_fit() -> None:
    shaking = Shaking(*training_set().tensors)
    baseline = IsolationForest(trees=20, features="inputs")
    assert torch.equal(rank(baseline, dataset=shaking).values, rank(baseline).values)
    published = IsolationForest(trees=20, features="inputs", compat=True)
    still, shaken = (rank(published, dataset=data).values[:, 0] for data in (None, shaking))
    # To a forest that saw examples shaken by 5, what is not shaken lies in the middle of it all.
    assert shaken.median() > still.median() + 0.1


@pytest.mark.parametrize("baseline", [IsolationForest(trees=5), LocalOutlierFactor(), OneClassSvm(exact_up_to=0)])
def test_features_that_are_no_numbers_name_the_example(baseline: Any) -> None:
    data = training_set()
    x = data.tensors[0].clone()
    x[7, 2] = float("nan")
    broken = type(data)(x, data.tensors[1])
    with pytest.raises(NonFiniteError, match="example 7"):
        rank(type(baseline)(features="inputs"), dataset=broken)
    with pytest.raises(NonFiniteError):
        rank(baseline, dataset=broken)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("neck", r"'neck': expected .* name of a sub-module: body, body\.0, body\.1, head"), ("", "expected")],
)
def test_unknown_layers_are_refused_with_those_there_are(kind: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rank(IsolationForest(features=kind))


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (OneClassSvm, {"nu": 0.0}),
        (OneClassSvm, {"gamma": 0.0}),
        (OneClassSvm, {"exact_up_to": -1}),
        (LocalOutlierFactor, {"neighbours": 0}),
    ],
)
def test_arguments_out_of_range_are_refused(make: Any, arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        make(**arguments)
