"""What is sampled: without bias, with the error it says, the same whatever is taken at once, in files and processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.valuation import (
    Agreement,
    Banzhaf,
    BetaShapley,
    FunctionUtility,
    Settled,
    Shapley,
    Truncation,
    Utility,
)
from lightning_sgdinf.valuation.play import Play
from lightning_sgdinf.valuation.sampling import draw_coalitions, draw_of_each_size, draw_order
from lightning_sgdinf.valuation.schemes import EverySize, Orders, Reuse, Scheme
from lightning_sgdinf.valuation.semivalues import banzhaf_sizes, beta_sizes, exact_values, shapley_sizes
from lightning_sgdinf.valuation.stopping import halves_agree, rank_correlation
from tests.valuation.games import additive_game, table_game

PLAYERS = 5
GAINS = torch.randn(PLAYERS, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
WEIGHTS = beta_sizes(2.0, 1.0)
SCHEMES: dict[str, tuple[Scheme, object]] = {
    "uniform": (Orders(PLAYERS, shapley_sizes, 3, "uniform"), shapley_sizes),
    "antithetic": (Orders(PLAYERS, shapley_sizes, 3, "antithetic"), shapley_sizes),
    "stratified": (Orders(PLAYERS, WEIGHTS, 3, "stratified"), WEIGHTS),
    "every size": (EverySize(PLAYERS, WEIGHTS, 3, 0 * GAINS), WEIGHTS),
    "with gains": (EverySize(PLAYERS, shapley_sizes, 3, GAINS), shapley_sizes),
    "unpaired": (EverySize(PLAYERS, shapley_sizes, 3, GAINS, paired=False), shapley_sizes),
    "reuse": (Reuse(PLAYERS, 3), banzhaf_sizes),
    "reuse with gains": (Reuse(PLAYERS, 3, gains=GAINS), banzhaf_sizes),
}


class Counting:
    """A game that counts what it is asked."""

    def __init__(self, game: FunctionUtility) -> None:
        self.game, self.players, self.names, self.calls = game, game.players, game.names, []

    def values(self, coalitions: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(coalitions))
        return self.game.values(coalitions)


@pytest.mark.parametrize("name", SCHEMES)
def test_estimates_scatter_around_the_exact_values_by_what_they_say(name: str) -> None:
    scheme, sizes = SCHEMES[name]
    game = table_game(PLAYERS)
    sampled = Play(rounds=600).values(game, scheme)
    assert sampled.standard_error is not None
    deviation = (sampled.values - exact_values(game, sizes)) / sampled.standard_error  # type: ignore[arg-type]
    assert 0.05 < deviation.square().mean() < 2.8, "not by what it says"
    assert deviation.abs().max() < 4
    assert sampled.standard_error.max() < 0.04, "the test is degenerate"


def test_every_round_adds_up_to_the_difference_of_the_ends() -> None:
    game = table_game(PLAYERS)
    for name in ("uniform", "antithetic", "with gains", "unpaired"):
        for rounds in (2, 6):
            sampled = Play(rounds=rounds).values(game, SCHEMES[name][0])
            assert (sampled.values.sum(0) - (sampled.ends.full - sampled.ends.empty)).abs().max() < 1e-12, name


def test_a_predictor_that_is_right_leaves_nothing_to_sample() -> None:
    game, worths = additive_game(PLAYERS, noise=0.0)
    for scheme in (EverySize(PLAYERS, shapley_sizes, 0, worths[:, None]), Reuse(PLAYERS, 0, gains=worths[:, None])):
        sampled = Play(rounds=40).values(game, scheme)
        assert (sampled.values[:, 0] - worths).abs().max() < 1e-10
    plain = Play(rounds=40).values(game, Reuse(PLAYERS, 0))
    assert plain.standard_error is not None
    assert plain.standard_error.max() > 0.1, "the test is degenerate"


def test_the_same_values_whatever_is_taken_at_once() -> None:
    game = table_game(PLAYERS)
    for scheme, _ in SCHEMES.values():
        one, many = (Play(rounds=20, at_once=n).values(game, scheme) for n in (1, 10_000))
        assert torch.equal(one.values, many.values)
    rule = Agreement(0.3)
    one, many = (Play(rounds=400, stop=rule, at_once=n).values(game, SCHEMES["uniform"][0]) for n in (7, 10_000))
    assert one.rounds == many.rounds < 400
    assert torch.equal(one.values, many.values)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), round_=st.integers(0, 500), players=st.integers(1, 40))
def test_draws(seed: int, round_: int, players: int) -> None:
    for sampling in ("uniform", "antithetic", "stratified"):
        order = draw_order(sampling, seed, round_, players)  # type: ignore[arg-type]
        assert sorted(order.tolist()) == list(range(players))
        assert torch.equal(order, draw_order(sampling, seed, round_, players))  # type: ignore[arg-type]
    pair = [draw_order("antithetic", seed, 2 * round_ + place, players) for place in (0, 1)]
    assert torch.equal(pair[0], pair[1].flip(0))
    coalitions = draw_of_each_size(seed, round_, players, paired=True)
    assert coalitions.sum(1).tolist() == list(range(1, players))
    for size in range(1, players):
        if 2 * size != players:
            assert torch.equal(coalitions[size - 1], ~coalitions[players - size - 1])
    halves = draw_coalitions(seed, round_, players, 20, paired=True)
    assert torch.equal(halves[:10], ~halves[10:])


def test_stratified_orders_have_a_player_once_in_each_tenth() -> None:
    places = np.stack([draw_order("stratified", 1, r, 40).argsort().numpy() // 4 for r in range(20)])
    assert (np.sort(places[:10], 0) == np.arange(10)[:, None]).all()
    assert (np.sort(places[10:], 0) == np.arange(10)[:, None]).all()
    assert (places[:10] != places[10:]).any()


def test_orders_are_uniform() -> None:
    for sampling in ("uniform", "antithetic", "stratified"):
        orders = [tuple(draw_order(sampling, 7, r, 3).tolist()) for r in range(1200)]  # type: ignore[arg-type]
        counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
        assert len(counts) == 6
        assert counts.min() > 150, sampling


def test_truncation_asks_less_and_credits_the_rest_with_nothing() -> None:
    players = 12
    game = FunctionUtility(lambda c: float(min(int(c.sum()), 3)), players)  # three are as good as all
    scheme = Orders(players, shapley_sizes, 0, "uniform")
    whole = Counting(game)
    short = Play(rounds=10, truncation=Truncation(0.01, patience=2, ahead=2)).values(whole, scheme)
    assert torch.equal(short.values, Play(rounds=10).values(game, scheme).values)  # nothing is gained after three
    assert short.trainings == 10 * 6  # prefixes of 1 .. 6: three in a row are close after the fifth
    cut = Play(rounds=10, truncation=Truncation(0.5, patience=0, ahead=3)).values(game, scheme)
    assert cut.values.sum() == pytest.approx(2.0)  # closer than half of all after the second
    for ahead in (1, 2, 5, 100):
        again = Play(rounds=10, truncation=Truncation(0.5, patience=0, ahead=ahead)).values(game, scheme)
        assert torch.equal(again.values, cut.values)


def test_it_goes_on_where_it_stopped_and_further(tmp_path: Path) -> None:
    game, path = table_game(10), tmp_path / "values.h5"
    whole = Shapley(permutations=30).value(game)
    counted = Counting(game)
    first = Shapley(permutations=12, resume=path).value(counted)
    asked = sum(counted.calls)
    more = Shapley(permutations=30, resume=path).value(counted)
    assert torch.equal(more.values, whole.values)
    assert (first.trainings, more.trainings) == (12 * 9, 18 * 9)
    assert sum(counted.calls) > asked
    counted.calls.clear()
    assert torch.equal(Shapley(permutations=30, resume=path).value(counted).values, whole.values)
    assert sum(counted.calls) == 2  # the ends
    leaning = BetaShapley(permutations=30, alpha=4.0, resume=path).value(counted)  # the same orders, credited otherwise
    assert torch.equal(leaning.values, BetaShapley(permutations=30, alpha=4.0).value(game).values)
    assert leaning.trainings == 0
    with pytest.raises(ConfigurationError, match="another measurement"):
        Shapley(permutations=30, seed=1, resume=path).value(game)


def test_what_was_saved_before_a_crash_is_not_asked_again(tmp_path: Path) -> None:
    game, path = table_game(10), tmp_path / "values.h5"
    calls = 0

    class Failing(Counting):
        def values(self, coalitions: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt
            return super().values(coalitions)

    play = Play(rounds=8, at_once=18, resume=path)
    scheme = Orders(10, shapley_sizes, 0, "uniform")
    with pytest.raises(KeyboardInterrupt):
        play.values(Failing(game), scheme)
    rest = play.values(game, scheme)
    assert rest.trainings == 4 * 9
    assert torch.equal(rest.values, Play(rounds=8).values(game, scheme).values)


def test_few_rounds_are_not_called_exact() -> None:
    game, _ = additive_game(13, 0.1)
    one = Shapley(permutations=1).value(game)
    assert one.standard_error is None
    assert one.agreement is None
    assert "not known from so few" in one.notes()[1]
    assert "rank alike to" in Shapley(permutations=2).value(game).notes()[1]
    assert "Exact: 16 coalitions" in Shapley().value(table_game(4)).notes()[1]


def test_stopping_rules() -> None:
    game, _ = additive_game(20, noise=1.0)
    scheme = Orders(20, shapley_sizes, 0, "uniform")
    stopped = Play(rounds=1000, stop=Agreement(0.95)).values(game, scheme)
    assert stopped.agreement is not None
    assert 20 <= stopped.rounds < 1000
    assert stopped.agreement.item() >= 0.95
    again = Play(rounds=stopped.rounds).values(game, Orders(20, shapley_sizes, 1, "uniform"))
    assert rank_correlation(again.values, stopped.values).item() > 0.9  # which is what the agreement says
    settled = Play(rounds=400, stop=Settled(0.5, rounds=100)).values(game, scheme)
    now, then = (Play(rounds=r).values(game, scheme).values for r in (settled.rounds, settled.rounds - 100))
    assert ((now - then).abs() / now.abs()).mean() < 0.5
    for wrong in (lambda: Agreement(1.0), lambda: Settled(0.0), lambda: Settled(rounds=0)):
        with pytest.raises(ConfigurationError):
            wrong()


def test_agreement_of_halves_by_hand() -> None:
    first, second = torch.tensor([[1.0], [2.0], [3.0], [3.0]]), torch.tensor([[1.0], [3.0], [2.0], [5.0]])
    r = 3 / (4.5 * 5) ** 0.5  # of ranks 1, 2, 3.5, 3.5 and 1, 3, 2, 4
    agreement = halves_agree(4, lambda start, stop: first if start == 0 else second)
    assert agreement.item() == pytest.approx(2 * r / (1 + r))
    assert rank_correlation(first, 0 * first).item() == 0


def test_several_processes_give_the_same() -> None:
    joblib = pytest.importorskip("joblib")
    game = table_game(9)
    one = Shapley(permutations=12, seed=4).value(game)
    with joblib.parallel_config(backend="threading"):
        several = Shapley(permutations=12, seed=4, jobs=3).value(game)
    assert torch.equal(one.values, several.values)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Shapley(permutations=0), "permutations"),
        (lambda: Shapley(sampling="latin"), "every_size, uniform"),  # type: ignore[arg-type]
        (lambda: Shapley(sampling="every_size", truncation=Truncation()), "leave it out"),
        (lambda: Banzhaf(coalitions=0), "coalitions"),
        (lambda: Banzhaf(sampling="stratified"), "antithetic"),  # type: ignore[arg-type]
        (lambda: BetaShapley(alpha=0), "alpha"),
        (lambda: Truncation(tolerance=0.0), "tolerance"),
        (lambda: Shapley(jobs=0).value(table_game(9)), "jobs"),
    ],
)
def test_refusals(make, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError, match=why):
        make()


def test_one_player_and_games_of_ones_own() -> None:
    game = table_game(1)
    assert isinstance(game, Utility)
    assert isinstance(Counting(game), Utility)
    for estimator in (Shapley(), Shapley(sampling="every_size"), Banzhaf(), BetaShapley()):
        alone = estimator.value(game)
        assert (alone.values[0] - (alone.ends.full - alone.ends.empty)).abs().max() < 1e-12
