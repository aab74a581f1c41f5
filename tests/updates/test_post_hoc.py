"""Methods to compare with: each against its formulas written out by hand on a run whose batches are the whole set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad

from lightning_sgdinf.errors import ConfigurationError, ForgettingError, StateNotStoredError
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.testing.runs import NormalisedNet, SmallNet, SmallRun, small_run
from lightning_sgdinf.updates import Updated
from lightning_sgdinf.updates.masks import SalientParameters
from lightning_sgdinf.updates.post_hoc import (
    BadTeacher,
    FineTuning,
    GradientAscent,
    NegGradPlus,
    RandomLabels,
    Scrub,
    SelectiveDampening,
    Sgd,
)
from tests.updates.test_extrapolated import CLASS, opened

WHOLE = Sgd(learning_rate=0.1, momentum=0.5, weight_decay=0.01, batch_size=13)
OWN, REST = list(CLASS.drop), [j for j in range(13) if j not in CLASS.drop]
Named = dict[str, Tensor]


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run(learnable=True)


@pytest.fixture(scope="module")
def final(small: SmallRun) -> Named:
    return {n: v.clone() for n, v in small.log.state(9).params.items()}


def update(run: SmallRun, method: Any, selection: Selection = CLASS) -> Updated:
    with opened(run) as open_run:
        return method.update(open_run, selection)


NET = SmallNet()


def logits(run: SmallRun, params: Named, ids: list[int]) -> Tensor:
    return functional_call(NET, params, (run.train.dataset.tensors[0][ids],))


def loss(run: SmallRun, params: Named, ids: list[int], labels: Tensor | None = None) -> Tensor:
    y = run.train.dataset.tensors[1] if labels is None else labels
    return F.cross_entropy(logits(run, params, ids), y[ids])


def descend(
    params: Named, losses: list[Callable[[Named], Tensor]], sgd: Sgd = WHOLE, mask: Named | None = None
) -> Named:
    """Momentum SGD with weight decay inside the gradient."""
    velocity = {n: torch.zeros_like(v) for n, v in params.items()}
    for one in losses:
        slopes = grad(one)(params)
        slopes = {n: slopes[n] + sgd.weight_decay * params[n] for n in params}
        if mask is not None:
            slopes = {n: slopes[n] * mask[n] for n in params}
        velocity = {n: sgd.momentum * velocity[n] + slopes[n] for n in params}
        params = {n: params[n] - sgd.learning_rate * velocity[n] for n in params}
    return params


def same(updated: Updated, expected: Named) -> None:
    for name, value in updated.state.params.items():
        assert torch.allclose(value, expected[name], rtol=1e-9, atol=1e-12), name


def test_fine_tuning_with_old_labels_and_new_and_sparse(small: SmallRun, final: Named) -> None:
    own = update(small, FineTuning(3, WHOLE))
    same(own, descend(final, [lambda p: loss(small, p, REST)] * 3))
    assert own.epochs == pytest.approx(3 * 9 / 13)
    labels = small.train.dataset.tensors[1].clone()
    labels[2] = 0
    relabelled = update(small, FineTuning(2, WHOLE), Selection(relabel={2: 0}))
    same(relabelled, descend(final, [lambda p: loss(small, p, list(range(13)), labels)] * 2))

    def sparse(factor: float) -> Callable[[Named], Tensor]:
        return lambda p: loss(small, p, REST) + factor * sum(v.abs().sum() for v in p.values())

    same(update(small, FineTuning(2, WHOLE, sparsity=0.3)), descend(final, [sparse(0.3), sparse(0.15)]))


def test_ascent_stops_when_the_set_is_forgotten(small: SmallRun, final: Named) -> None:
    sgd = Sgd(learning_rate=0.2, momentum=0.0, weight_decay=0.0, batch_size=4)
    updated, params, steps = update(small, GradientAscent(sgd)), final, 0
    y = small.train.dataset.tensors[1][OWN]
    while bool((logits(small, params, OWN).argmax(1) == y).any()):
        params, steps = descend(params, [lambda p: -loss(small, p, OWN)] * 2, sgd), steps + 2
    assert steps > 2, "the test is degenerate"
    same(updated, params)
    with pytest.raises(ForgettingError, match="2 steps of ascent"):
        update(small, GradientAscent(sgd, most=2))


def test_descent_and_ascent_together(small: SmallRun, final: Named) -> None:
    def both(p: Named) -> Tensor:
        return 0.9 * loss(small, p, REST) - 0.1 * loss(small, p, OWN)

    same(update(small, NegGradPlus(2, 0.9, WHOLE)), descend(final, [both, both]))


@pytest.mark.parametrize("ratio", [None, 0.4])
def test_random_labels_are_wrong_and_salient_parameters_alone_move(
    small: SmallRun, final: Named, ratio: float | None
) -> None:
    """Of all ways to give each a wrong label, one leads to the outcome."""
    chosen = {} if ratio is None else {"parameters": SalientParameters(ratio)}
    updated = update(small, RandomLabels(1, sgd=WHOLE, **chosen))
    mask = None
    if ratio is not None:
        slopes = grad(lambda p: loss(small, p, OWN))(final)
        flat = torch.cat([v.abs().flatten() for v in slopes.values()])
        least = flat.sort(descending=True).values[int(ratio * len(flat)) - 1]
        mask = {n: (v.abs() >= least).double() for n, v in slopes.items()}
    y, matching = small.train.dataset.tensors[1], 0
    for code in range(2**4):
        labels = y.clone()
        for bit, example in enumerate(OWN):
            labels[example] = (y[example] + 1 + (code >> bit) % 2) % 3
        expected = descend(final, [lambda p, labels=labels: loss(small, p, list(range(13)), labels)], mask=mask)
        matching += all(torch.allclose(updated.state.params[n], v, rtol=1e-9, atol=1e-12) for n, v in expected.items())
    assert matching == 1


def apart(run: SmallRun, params: Named, ids: list[int], teacher: Tensor) -> Tensor:
    student = logits(run, params, ids).log_softmax(1)
    return (teacher[ids].exp() * (teacher[ids] - student)).sum(1).mean()


def test_scrub_follows_then_departs_then_follows(small: SmallRun, final: Named) -> None:
    teacher = logits(small, final, list(range(13))).log_softmax(1).detach()

    def follow(p: Named) -> Tensor:
        return 0.99 * loss(small, p, REST) + 0.5 * apart(small, p, REST, teacher)

    bare = Sgd(WHOLE.learning_rate, WHOLE.momentum, 0.0, WHOLE.batch_size)
    params = descend(final, [follow])
    params = descend(params, [lambda p: -apart(small, p, OWN, teacher)], bare)
    same(update(small, Scrub(2, sgd=WHOLE)), descend(params, [follow]))


def test_two_teachers_one_of_them_untrained(small: SmallRun, final: Named) -> None:
    first = {n: v.clone() for n, v in small.log.state(0).params.items()}
    everybody = list(range(13))
    teacher = logits(small, final, everybody).log_softmax(1).detach()
    teacher[OWN] = logits(small, first, OWN).log_softmax(1).detach()
    expected = descend(final, [lambda p: apart(small, p, everybody, teacher)] * 2)
    same(update(small, BadTeacher(2, WHOLE)), expected)
    late = MemoryLog(header=small.log.header, steps=list(small.log.steps(0, 9)), states={9: small.log.state(9)})
    with opened(small, late) as run, pytest.raises(StateNotStoredError):
        BadTeacher(1, WHOLE).update(run, CLASS)


def test_parameters_that_matter_to_the_set_are_dampened(small: SmallRun, final: Named) -> None:
    everybody = list(range(13))
    of_all = {n: v.square() for n, v in grad(lambda p: loss(small, p, everybody))(final).items()}
    of_set = {n: v.square() for n, v in grad(lambda p: loss(small, p, OWN))(final).items()}
    expected = {
        n: torch.where(of_set[n] > 2 * of_all[n], v * (0.7 * of_all[n] / of_set[n]).clamp(max=1), v)
        for n, v in final.items()
    }
    assert any(not torch.equal(expected[n], v) for n, v in final.items()), "the test is degenerate"
    same(update(small, SelectiveDampening(2.0, 0.7, WHOLE)), expected)


METHODS = [
    FineTuning(),
    GradientAscent(Sgd(0.5, 0.0, 0.0)),
    NegGradPlus(),
    RandomLabels(),
    Scrub(cycles=2),
    BadTeacher(),
    SelectiveDampening(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_batches_buffers_and_refusals(method: Any) -> None:
    """On a net with everything, twice the same; the run serves on; selections of no use are refused."""
    run = small_run(make=NormalisedNet, learnable=True)
    with opened(run) as open_run:
        one, two = (method.update(open_run, CLASS).state for _ in range(2))
        assert all(torch.equal(v, two.params[n]) for n, v in one.params.items())
        assert set(one.buffers) == set(run.log.state(9).buffers)
        for selection in (Selection(), Selection(drop=(13,)), Selection(drop=tuple(range(13)))):
            with pytest.raises(ConfigurationError):
                method.update(open_run, selection)
        if not isinstance(method, FineTuning):
            with pytest.raises(ConfigurationError, match="new labels"):
                method.update(open_run, Selection(relabel={1: 0}))


def test_numbers_out_of_range_are_refused() -> None:
    for make in (
        lambda: Sgd(learning_rate=0.0),
        lambda: Sgd(batch_size=0),
        lambda: FineTuning(epochs=0),
        lambda: FineTuning(sparsity=-1.0),
        lambda: GradientAscent(most=0),
        lambda: NegGradPlus(weight=1.0),
        lambda: RandomLabels(epochs=0),
        lambda: Scrub(cycles=0),
        lambda: BadTeacher(epochs=0),
        lambda: SelectiveDampening(dampening=0.0),
        lambda: SalientParameters(0.0),
    ):
        with pytest.raises(ConfigurationError):
            make()
