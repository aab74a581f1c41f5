from __future__ import annotations

import pytest
import torch

from lightning_sgdinf.cleansing import Evaluation, Selection, cleansing_curve, random_ranking
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Updated


def retrain(selection: Selection) -> Updated:
    """The state is what was dropped."""
    return Updated(state=ModelState(params={"dropped": torch.tensor(selection.drop)}), seconds=0.0)


def evaluate(state: ModelState) -> Evaluation:
    return Evaluation(loss=float(sum(state.params["dropped"].tolist())), error=0.0, count=len(state.params["dropped"]))


def test_each_point_leaves_out_a_prefix() -> None:
    curve = cleansing_curve(retrain, torch.tensor([5, 1, 4, 2]), [0, 1, 3, 4], evaluate)
    assert curve == [
        (0, Evaluation(0, 0, 0)),
        (1, Evaluation(5, 0, 1)),
        (3, Evaluation(10, 0, 3)),
        (4, Evaluation(12, 0, 4)),
    ]


@pytest.mark.parametrize("counts", [[1, 1], [2, 1], [-1], [5]])
def test_counts_increase_and_stay_within_the_ranking(counts: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="increasing numbers from 0 to 4"):
        cleansing_curve(retrain, [5, 1, 4, 2], counts, evaluate)


def test_a_random_ranking_is_one_permutation_per_seed() -> None:
    before = torch.random.get_rng_state()
    ranking = random_ranking(50, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sorted(ranking) == list(range(50))
    assert ranking == random_ranking(50, seed=3)
    assert ranking != random_ranking(50, seed=4)
