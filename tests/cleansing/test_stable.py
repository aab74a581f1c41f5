"""The choice that only chance beyond doubt makes, against bounds by formulas and counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from lightning_sgdinf.cleansing import (
    CleansingContext,
    InfeasibleWarning,
    Relabel,
    Selection,
    SkippedCountWarning,
    Stable,
    Trial,
)
from lightning_sgdinf.cleansing.stable import lower_bound
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.scores import Scores

HELD_OUT = 400
SCORES = Scores(values=torch.tensor([[-4.0], [-3.0], [-2.0], [-1.0], [0.0], [1.0]]).double(), queries=("loss",))


class HeldOut:
    """Every held-out example's value by the number of examples changed: noise, and a gain that is the same for all."""

    def __init__(self, gains: dict[int, float], noise: float = 0.1) -> None:
        self.gains, self.noise = gains, noise
        self.asked: list[int] = []

    def __call__(self, selection: Selection) -> Tensor:
        count = len(selection)
        self.asked.append(count)
        draw = np.random.default_rng(100 + count)
        hard = np.random.default_rng(0).standard_normal(HELD_OUT) * 50  # the same for all models: cancels in pairs
        noise = self.noise * draw.standard_normal(HELD_OUT) if count else np.zeros(HELD_OUT)
        return torch.from_numpy(hard + noise - self.gains[count])


def choose(strategy: Stable, held_out: HeldOut, seed: int = 0) -> Selection:
    return strategy.select(SCORES, CleansingContext(evaluate_each=held_out, seed=seed))


def test_the_smallest_count_beyond_chance_is_taken() -> None:
    held_out = HeldOut({0: 0.0, 1: -0.1, 2: 0.002, 3: 0.05, 4: 0.5})
    selection = choose(Stable(grid=(1, 2, 3, 4)), held_out)
    assert selection.drop == (0, 1, 2)
    assert held_out.asked == [0, 1, 2, 3], "what is beyond the choice is not trained"
    assert [trial.count for trial in selection.trace] == [0, 1, 2, 3]
    gains = [trial.gain for trial in selection.trace]
    assert gains[0] == 0
    assert gains[1] < -0.09
    assert -0.02 < gains[2] <= 0
    assert gains[3] == pytest.approx(0.05 - 1.645 * 0.1 / math.sqrt(HELD_OUT), abs=0.008)
    assert selection.trace[3].value == pytest.approx(float(held_out(Selection(drop=(0, 1, 2))).mean()))
    assert "3 is the smallest of the counts tried" in selection.reason
    assert Selection.from_json(selection.to_json()) == selection


def test_nothing_is_removed_when_nothing_helps_beyond_chance() -> None:
    held_out = HeldOut({0: 0.0, 1: 0.001, 2: -0.2, 4: 0.0})
    selection = choose(Stable(grid=(1, 2, 4)), held_out)
    assert len(selection) == 0
    assert held_out.asked == [0, 1, 2, 4]
    assert "none of 3 counts tried" in selection.reason


def test_a_certain_gain_of_all_examples_is_taken_and_none_at_all_is_not() -> None:
    assert len(choose(Stable(grid=(2,)), HeldOut({0: 0.0, 2: 1e-6}, noise=0.0))) == 2
    assert len(choose(Stable(grid=(2,)), HeldOut({0: 0.0, 2: 0.0}, noise=0.0))) == 0


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_bound_is_near_the_normal_one_for_many_examples(confidence: float) -> None:
    values = torch.from_numpy(np.random.default_rng(3).exponential(2.0, 2000))
    expected = values.mean() - norm.ppf(confidence) * values.std() / math.sqrt(2000)
    bound = lower_bound(values, confidence=confidence, resamples=1500, seed=1)
    assert bound == pytest.approx(float(expected), abs=0.012)


def test_errors_by_counting() -> None:
    """Of values 0 and 1 the resampled mean is binomial: its quantile is known."""
    from scipy.stats import binom

    values = torch.cat([torch.ones(12), torch.zeros(188)])
    expected = binom.ppf(0.05, 200, 12 / 200) / 200
    assert lower_bound(values, confidence=0.95, resamples=4000, seed=0) == pytest.approx(expected, abs=1.01 / 200)


def test_luck_passes_as_often_as_the_confidence_says() -> None:
    """Examples drawn from a world without any gain: one in ten bounds at 90 % is above 0."""
    draw = np.random.default_rng(11)
    bounds = [
        lower_bound(torch.from_numpy(draw.standard_normal(60)), confidence=0.9, resamples=200, seed=s)
        for s in range(200)
    ]
    assert 0.05 < np.mean(np.array(bounds) > 0) < 0.17


def test_confidence_for_all_counts_together_asks_more() -> None:
    gains = {0: 0.0, 1: 0.0055, 2: -1.0, 3: -1.0, 4: -1.0}
    alone, together = (
        choose(Stable(grid=(1, 2, 3, 4), simultaneous=together, resamples=4000), HeldOut(gains))
        for together in (False, True)
    )
    assert (len(alone), len(together)) == (1, 0)
    assert "0.9875 confidence" in together.reason


def test_the_seed_decides_and_global_generators_stay() -> None:
    held_out = HeldOut({0: 0.0, 1: 0.0, 2: 0.0})
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (choose(Stable(grid=(1, 2)), held_out, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_it_can_choose_how_many_to_relabel() -> None:
    context = CleansingContext(
        labels=torch.zeros(6, dtype=torch.int64),
        predictions=lambda ids: torch.ones(len(ids), dtype=torch.int64),
        evaluate_each=HeldOut({0: 0.0, 2: 1.0}),
    )
    assert Stable(grid=(2,), treatment=Relabel).select(SCORES, context).relabel == {0: 1, 1: 1}


@pytest.mark.parametrize(
    "arguments", [{"grid": ()}, {"grid": (2, 2)}, {"confidence": 0.0}, {"confidence": 1.0}, {"resamples": 99}]
)
def test_settings_that_mean_nothing_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Stable(**arguments)  # type: ignore[arg-type]


def test_too_few_resamples_for_the_confidence_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"resamples: expected 100\d or more for a bound of confidence 0\.999, got 500"
    ):
        choose(Stable(grid=(1,), confidence=0.999, resamples=500), HeldOut({0: 0.0, 1: 0.0}))


def test_held_out_values_must_be_there_and_finite_and_of_the_same_examples() -> None:
    with pytest.raises(ConfigurationError, match="needs `evaluate_each`"):
        Stable().select(SCORES, CleansingContext())

    def broken(selection: Selection) -> Tensor:
        return torch.tensor([0.0, float("nan") if len(selection) else 1.0])

    with pytest.warns(SkippedCountWarning, match="2 examples changed: skipped.* example 1 with 2 examples changed"):
        assert not Stable(grid=(2,)).select(SCORES, CleansingContext(evaluate_each=broken)).drop
    with pytest.raises(NonFiniteError, match="example 0 with 0 examples changed"):
        Stable(grid=(2,)).select(SCORES, CleansingContext(evaluate_each=lambda _: torch.tensor([float("inf")])))

    def shrinking(selection: Selection) -> Tensor:
        return torch.rand(5 - len(selection))

    with pytest.raises(ConfigurationError, match="same 5 examples each time, got 3"):
        Stable(grid=(2,)).select(SCORES, CleansingContext(evaluate_each=shrinking))


def test_counts_beyond_the_training_set_are_refused_before_anything_is_trained() -> None:
    held_out = HeldOut({0: 0.0, 2: 0.0})
    with pytest.raises(ConfigurationError, match=r"expected counts below 6.* got \[6, 9\]"):
        choose(Stable(grid=(2, 6, 9)), held_out)
    assert held_out.asked == []
    with pytest.warns(InfeasibleWarning, match=r"got \[6, 9\]"):
        selection = Stable(grid=(2, 6, 9)).select(SCORES, CleansingContext(evaluate_each=held_out, on_excess="warn"))
    assert selection.trace[:1] == (Trial(0, selection.trace[0].value, 0.0),)
    assert held_out.asked == [0, 2]
