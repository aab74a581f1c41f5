from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import AsymmetricNoise, SymmetricNoise, flip_labels
from lightning_sgdinf.zoo.cifar10 import CLASSES
from lightning_sgdinf.zoo.label_noise import LabelNoise, NoisyLabels
from lightning_sgdinf.zoo.mnist import CLOTHES

DIGITS = tuple("0123456789")
LABELS = torch.arange(1000) * 7 % 10


def applied(noise: LabelNoise, names: tuple[str, ...] = DIGITS, seed: int = 3, labels: Tensor = LABELS) -> NoisyLabels:
    return noise.apply(labels, ids=torch.arange(len(labels)), class_names=names, seed=seed)


def changes(noisy: NoisyLabels) -> dict[tuple[int, int], int]:
    pairs = list(zip(noisy.true_labels[noisy.flipped].tolist(), noisy.labels[noisy.flipped].tolist(), strict=True))
    return {pair: pairs.count(pair) for pair in sorted(set(pairs))}


def test_symmetric_is_the_function() -> None:
    expected = flip_labels(LABELS, fraction=0.3, classes=10, seed=3)
    noisy = applied(SymmetricNoise(0.3))
    assert torch.equal(noisy.labels, expected.labels)
    assert int(noisy.flipped.sum()) == 300
    assert torch.equal(noisy.true_labels, LABELS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (DIGITS, {(2, 7), (3, 8), (5, 6), (6, 5), (7, 1)}),
        (CLOTHES, {(9, 7), (7, 5), (2, 6), (4, 3), (3, 4)}),
        (CLASSES, {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}),
    ],
)
def test_customary_maps_flip_exactly_their_share(names: tuple[str, ...], expected: set[tuple[int, int]]) -> None:
    assert changes(applied(AsymmetricNoise(0.23), names)) == dict.fromkeys(expected, 23)


@pytest.mark.parametrize("class_map", [{"cat": "ship", "dog": "cat"}, {3: 8, 5: 3}, {"cat": 8, 5: "cat"}])
def test_a_map_of_ones_own_by_name_or_number(class_map: dict) -> None:
    assert changes(applied(AsymmetricNoise(0.5, class_map=class_map), CLASSES)) == {(3, 8): 50, (5, 3): 50}


def test_the_seed_decides_which() -> None:
    noise = AsymmetricNoise(0.2)
    assert torch.equal(applied(noise).labels, applied(noise).labels)
    assert not torch.equal(applied(noise).labels, applied(noise, seed=4).labels)
    assert not applied(AsymmetricNoise(0.0)).flipped.any()
    assert changes(applied(AsymmetricNoise(1.0, class_map={1: 2}))) == {(1, 2): 100}
    assert not applied(AsymmetricNoise(1.0, class_map={9: 2}), labels=torch.zeros(4, dtype=torch.int64)).flipped.any()


@pytest.mark.parametrize(
    ("class_map", "names", "says"),
    [
        ({"cat": "dgo"}, CLASSES, "expected names or numbers of airplane, .*, got 'dgo'"),
        ({10: 1}, DIGITS, "got 10"),
        ({1: 1}, DIGITS, "got 1 to itself"),
        (None, ("a", "b"), "none in common use for the classes a, b; give one, such as {a: b}"),
    ],
)
def test_impossible_maps(class_map: dict | None, names: tuple[str, ...], says: str) -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match=f"class_map: .*{says}"):
        applied(AsymmetricNoise(0.1, class_map=class_map), names, labels=labels)


@pytest.mark.parametrize("kind", [SymmetricNoise, AsymmetricNoise])
@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_impossible_fractions(kind: type, fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a number in \[0, 1\]"):
        kind(fraction)
