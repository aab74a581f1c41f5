"""The same values by pyDVL, on the same games, and its samplers on ours."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from lightning_sgdinf.valuation import PydvlGame, Utility
from lightning_sgdinf.valuation.semivalues import Sizes, banzhaf_sizes, beta_sizes, exact_values, shapley_sizes
from tests.valuation.games import table_game

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pydvl = pytest.importorskip("pydvl.valuation")

pytestmark = pytest.mark.filterwarnings("ignore")


def fitted(game: PydvlGame, kind: Any, sampler: Any, done: Any = None, **more: Any) -> torch.Tensor:
    valuation = kind(game.utility, sampler, is_done=done or pydvl.NoStopping(), progress=False, **more)
    valuation.fit(game.dataset)
    result = valuation.result
    return torch.tensor(result.values[result.indices.argsort()])


@pytest.mark.parametrize(
    ("kind", "more", "sizes"),
    [
        ("ShapleyValuation", {}, shapley_sizes),
        ("BanzhafValuation", {}, banzhaf_sizes),
        ("BetaShapleyValuation", {"alpha": 4, "beta": 1}, beta_sizes(4, 1)),
        ("BetaShapleyValuation", {"alpha": 1, "beta": 16}, beta_sizes(1, 16)),
    ],
)
def test_exact_values_are_pydvls(kind: str, more: dict[str, Any], sizes: Sizes) -> None:
    game = table_game(6)
    for query in (0, 1):
        sampler = pydvl.DeterministicUniformSampler(index_iteration=pydvl.FiniteSequentialIndexIteration)
        values = fitted(PydvlGame(game, query), getattr(pydvl, kind), sampler, **more)
        assert (values - exact_values(game, sizes)[:, query]).abs().max() < 1e-12


def test_what_a_sampler_needs_is_asked_ahead_many_at_once() -> None:
    calls: list[int] = []

    class Counted:
        players, names = 6, ("a", "b")

        def values(self, coalitions: torch.Tensor) -> torch.Tensor:
            calls.append(len(coalitions))
            return table_game(6).values(coalitions)

    game = PydvlGame(Counted())
    assert isinstance(Counted(), Utility)
    assert game.ask_ahead(pydvl.PermutationSampler(seed=1), 20) == calls[0] > 20
    values = fitted(game, pydvl.ShapleyValuation, pydvl.PermutationSampler(seed=1), pydvl.MaxUpdates(20))
    assert len(calls) == 1
    assert (values - exact_values(table_game(6), shapley_sizes)[:, 0]).abs().max() < 0.3
    assert game.ask_ahead(pydvl.MSRSampler(seed=1), 30) + calls[0] <= 64
