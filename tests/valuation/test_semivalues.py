"""Exact values against all orders of the players, and the semivalues' weights against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.valuation import Banzhaf, BetaShapley, FunctionUtility, LeaveOneOut, Shapley, groups_of
from lightning_sgdinf.valuation.semivalues import banzhaf_sizes, beta_sizes, leave_one_out_sizes, shapley_sizes
from lightning_sgdinf.valuation.utility import check_groups
from tests.valuation.games import by_all_orders, table_game

PLAYERS = 6


def chance(density, size: int, players: int) -> float:  # type: ignore[no-untyped-def]
    """The probability of a size where each other player is in with a probability that is drawn itself."""
    n = players - 1
    return quad(lambda t: density(t) * math.comb(n, size) * t**size * (1 - t) ** (n - size), 0, 1)[0]


def test_shapley_of_eight_is_the_mean_of_all_orders() -> None:
    game = table_game(8, queries=1)
    exact = Shapley(permutations="all").value(game)
    assert (exact.values - by_all_orders(game)).abs().max() < 1e-10
    assert (exact.trainings, exact.standard_error, exact.agreement) == (256, None, None)
    assert (exact.values.sum(0) - (exact.ends.full - exact.ends.empty)).abs().max() < 1e-12


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (4.0, 1.0), (1.0, 3.5), (2.0, 2.0)])
def test_beta_shapley_weighs_sizes_by_a_beta_density(alpha: float, beta: float) -> None:
    # The share of those who are there before is beta-distributed: many small coalitions for a large alpha.
    norm = math.gamma(alpha) * math.gamma(beta) / math.gamma(alpha + beta)
    weights = [chance(lambda t: t ** (beta - 1) * (1 - t) ** (alpha - 1) / norm, s, PLAYERS) for s in range(PLAYERS)]
    assert beta_sizes(alpha, beta)(PLAYERS).tolist() == pytest.approx(weights, abs=1e-9)
    game = table_game(PLAYERS)
    expected = by_all_orders(game, lambda size: PLAYERS * weights[size])
    exact = BetaShapley(permutations="all", alpha=alpha, beta=beta).value(game)
    assert (exact.values - expected).abs().max() < 1e-8


def test_banzhaf_is_the_mean_over_coalitions_of_the_others() -> None:
    game = table_game(PLAYERS)
    coalitions = torch.tensor([[bool(c >> i & 1) for i in range(PLAYERS)] for c in range(2**PLAYERS)])
    with_all = [game.values(coalitions | torch.eye(PLAYERS, dtype=torch.bool)[i]) for i in range(PLAYERS)]
    without = [game.values(coalitions & ~torch.eye(PLAYERS, dtype=torch.bool)[i]) for i in range(PLAYERS)]
    expected = torch.stack([(a - b).mean(0) for a, b in zip(with_all, without, strict=True)])
    assert (Banzhaf(coalitions="all").value(game).values - expected).abs().max() < 1e-12


def test_leaving_one_out() -> None:
    game = table_game(PLAYERS)
    others = ~torch.eye(PLAYERS, dtype=torch.bool)
    expected = game.values(torch.ones(1, PLAYERS, dtype=torch.bool)) - game.values(others)
    assert torch.equal(LeaveOneOut().value(game).values, expected)


@pytest.mark.parametrize("sizes", [shapley_sizes, banzhaf_sizes, leave_one_out_sizes, beta_sizes(3.0, 0.5)])
@pytest.mark.parametrize("players", [1, 2, 40, 3000])
def test_weights_are_a_distribution(sizes, players: int) -> None:  # type: ignore[no-untyped-def]
    weights = sizes(players)
    assert weights.shape == (players,)
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-9)


def test_few_players_are_valued_exactly_where_that_is_cheaper() -> None:
    game = table_game(5)
    assert Shapley(permutations=100).value(game).trainings == 32
    assert Shapley(permutations=5).value(game).standard_error is not None
    assert Banzhaf(coalitions=32).value(game).agreement is None


def test_more_than_twelve_are_refused_and_so_is_a_value_that_is_no_number() -> None:
    game = FunctionUtility(lambda c: 0.0, 13)
    for estimator in (Shapley(permutations="all"), Banzhaf(coalitions="all")):
        with pytest.raises(ConfigurationError, match="at most 12 players; there are 13"):
            estimator.value(game)
    with pytest.raises(NonFiniteError, match="training on 0 of 3 players"):
        Shapley().value(FunctionUtility(lambda c: float("nan") if not c.any() else 1.0, 3))


def test_groups() -> None:
    assert groups_of(["b", "a", "b", 3]) == ((3,), (1,), (0, 2))
    for groups, why in (((), "0 groups"), (((0,), ()), "one is empty"), (((0, 1), (1,)), "in two"), (((9,),), "range")):
        with pytest.raises(ConfigurationError, match=why):
            check_groups(groups, 3)
