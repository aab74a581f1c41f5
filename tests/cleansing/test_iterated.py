"""Margins of replays without suspects: against replays by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad

from lightning_sgdinf.cleansing import IteratedMargins
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.testing.runs import SmallNet, SmallRun, small_run
from lightning_sgdinf.updates.repair import Failures
from tests.updates.test_extrapolated import opened

SEARCH = IteratedMargins(rounds=2, fractions=(0.1, 0.2, 0.35), thresholds=(0.4, 0.9), states=3)


def loss_along(small: SmallRun, choosing: tuple[int, ...], selection: Selection) -> float:
    """Mean loss of the choosing half after 7, 8 and 9 steps of training by hand."""
    (x, y), (xv, yv) = small.train.dataset.tensors, small.validation.dataset.tensors
    y = y.clone()
    for j, label in selection.relabel.items():
        y[j] = label
    weights, net = selection.weights(13), SmallNet()
    params = {n: v.clone() for n, v in small.log.state(0).params.items()}
    velocity, losses = {n: torch.zeros_like(v) for n, v in params.items()}, []
    for step in small.log.steps(0, 9):
        ids = step.example_ids.tolist()

        def loss(p: dict[str, torch.Tensor], ids: list[int] = ids) -> torch.Tensor:
            each = F.cross_entropy(functional_call(net, p, (x[ids],)), y[ids], reduction="none")
            return (weights[ids] * each).mean()

        slopes = grad(loss)(params)
        velocity = {n: 0.8 * velocity[n] + slopes[n] for n in params}
        params = {n: params[n] - 0.2 * velocity[n] for n in params}
        if step.index >= 6:
            own = list(choosing)
            losses.append(float(F.cross_entropy(functional_call(net, params, (xv[own],)), yv[own])))
    return sum(losses) / len(losses)


def halves(choosing: tuple[int, ...]) -> Failures:
    return Failures(choosing, tuple(j for j in range(10) if j not in choosing), (), ())


@pytest.mark.parametrize(("seed", "choosing"), [(1, (0, 2, 4, 6, 8)), (5, (5, 6, 7, 8, 9)), (0, (0, 2, 4, 6, 8))])
def test_the_number_is_the_best_of_replays_on_the_choosing_half(seed: int, choosing: tuple[int, ...]) -> None:
    small, failures = small_run(seed), halves(choosing)
    with opened(small) as run:
        result = SEARCH.search(run, failures)
        first = IteratedMargins(rounds=1, fractions=SEARCH.fractions, thresholds=(), states=3).search(run, failures)
        # the first ranking is that of margins along the recorded run, over its last states
        x, y = small.train.dataset.tensors
        margins = torch.zeros(13, dtype=torch.float64)
        for mark in (7, 8, 9):
            p = functional_call(SmallNet(), dict(small.log.state(mark).params), (x,)).log_softmax(1)
            own = p.gather(1, y[:, None])[:, 0]
            margins += (own - p.scatter(1, y[:, None], -torch.inf).amax(1)) / 3
        order = margins.argsort().tolist()
        losses = {number: loss_along(small, choosing, Selection(drop=tuple(order[:number]))) for number in (1, 3, 5)}
        before, final = (loss_along(small, choosing, selection) for selection in (Selection(), result.selection))
    assert {t.count: t.value for t in first.selection.trace} == pytest.approx(losses)
    best = min(losses, key=lambda n: losses[n])
    expected = order[:best] if losses[best] < before else []
    assert list(first.selection.drop) == expected
    assert bool(expected) == (seed > 0), "of the last run nothing is to be left out, of the others something"
    assert result.losses[0] == pytest.approx(before, rel=1e-12)
    assert list(result.losses) == sorted(result.losses, reverse=True)
    assert final == pytest.approx(result.losses[-1], rel=1e-12)
    assert all(int(y[j]) != label for j, label in result.selection.relabel.items())


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"rounds": 0},
        {"fractions": ()},
        {"fractions": (0.2, 0.1)},
        {"fractions": (0.5, 1.0)},
        {"thresholds": (0.0,)},
        {"states": 0},
        {"share": 0.0},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(wrong)).rstrip("s")):
            IteratedMargins(**wrong)
