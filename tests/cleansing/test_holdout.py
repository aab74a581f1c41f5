from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from lightning_sgdinf.cleansing import halve
from lightning_sgdinf.errors import ConfigurationError


@given(st.integers(2, 60), st.integers(0, 5))
def test_halves_are_disjoint_and_complete(count: int, seed: int) -> None:
    halves = halve(count, seed=seed)
    assert sorted(halves.scoring.tolist() + halves.choosing.tolist()) == list(range(count))
    assert len(halves.scoring) - len(halves.choosing) == count % 2
    assert halves.scoring.tolist() == sorted(halves.scoring.tolist())


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 5))
def test_classes_are_halved_too(labels: list[int], seed: int) -> None:
    halves = halve(len(labels), seed=seed, labels=torch.tensor(labels))
    assert sorted(halves.scoring.tolist() + halves.choosing.tolist()) == list(range(len(labels)))
    first, second = (Counter(labels[j] for j in ids.tolist()) for ids in (halves.scoring, halves.choosing))
    assert all(abs(first[c] - second[c]) <= 1 for c in set(labels))
    assert len(halves.scoring) - len(halves.choosing) == len(labels) % 2


def test_the_seed_decides_and_no_global_generator_moves() -> None:
    before = torch.random.get_rng_state()
    one, again, other = halve(40, seed=1), halve(40, seed=1), halve(40, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.scoring, again.scoring)
    assert not torch.equal(one.scoring, other.scoring)


def test_subsets_hold_the_examples() -> None:
    dataset = TensorDataset(torch.arange(5))
    halves = halve(5, seed=0)
    scoring, choosing = halves.subsets(dataset)
    assert [int(x) for (x,) in scoring] == halves.scoring.tolist()
    assert [int(x) for (x,) in choosing] == halves.choosing.tolist()


def test_refuses_what_cannot_be_halved() -> None:
    with pytest.raises(ConfigurationError, match="2 or more"):
        halve(1, seed=0)
    with pytest.raises(ConfigurationError, match="one for each of 3"):
        halve(3, seed=0, labels=torch.zeros(2))
