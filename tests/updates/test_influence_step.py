"""Influence directions against dense algebra in float64, and the steps along them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lightning_sgdinf.curvature import ConjugateGradient, RestartedLissa, System
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, ForgettingError
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.testing.fingerprints import host_fingerprint
from lightning_sgdinf.testing.runs import SmallNet, SmallRun, small_run
from lightning_sgdinf.updates import Forgotten
from lightning_sgdinf.updates.influence import (
    FreezingDirection,
    GeneralizedDirection,
    InfluenceProblem,
    InfluenceStep,
    NaturalStep,
    OriginalDirection,
    PlainGradient,
    ProjectingDirection,
    PublishedInfluenceStep,
    SecondOrderDirection,
    StepToTheStop,
    influence_problem,
)
from lightning_sgdinf.updates.masks import AllParameters
from tests.updates.test_extrapolated import CLASS, opened, right

REST = tuple(j for j in range(13) if j not in CLASS.drop)
EXACT = ConjugateGradient(tolerance=1e-13, max_iterations=10_000)
DAMPING = 0.05


@dataclass
class Dense:
    """Gradient and curvatures of mean losses, by ``torch.func`` on a flat vector of parameters."""

    run: SmallRun
    theta: Tensor
    net: SmallNet = field(default_factory=SmallNet)

    @classmethod
    def of(cls, run: SmallRun, opened_run: OpenedRun) -> Dense:
        return cls(run, torch.cat([v.reshape(-1) for v in opened_run.model.params.values()]))

    def logits(self, theta: Tensor, ids: tuple[int, ...]) -> Tensor:
        shapes = {n: p.shape for n, p in self.run.model.named_parameters()}
        parts = theta.split([s.numel() for s in shapes.values()])
        named = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(self.net, named, (self.run.train.dataset.tensors[0][list(ids)],))

    def labels(self, ids: tuple[int, ...]) -> Tensor:
        return self.run.train.dataset.tensors[1][list(ids)]

    def gradient(self, ids: tuple[int, ...], labels: Tensor | None = None) -> Tensor:
        y = self.labels(ids) if labels is None else labels
        return torch.func.grad(lambda t: F.cross_entropy(self.logits(t, ids), y))(self.theta)

    def curvature(self, ids: tuple[int, ...], kind: str) -> Tensor:
        if kind == "hessian":
            y = self.labels(ids)
            return torch.func.hessian(lambda t: F.cross_entropy(self.logits(t, ids), y))(self.theta)
        jacobian = torch.func.jacrev(lambda t: self.logits(t, ids))(self.theta)
        p = self.logits(self.theta, ids).softmax(1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("bip,bij,bjq->pq", jacobian, inner, jacobian) / len(ids)


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run(learnable=True)


def some(size: int) -> ParameterMask:
    return ParameterMask(torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.2)


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 1e-6, "the test is degenerate"
    assert float((found - expected).norm() / expected.norm()) < 1e-8


@pytest.mark.parametrize(("kind", "damping"), [("hessian", 0.0), ("hessian", DAMPING), ("gauss_newton", DAMPING)])
def test_directions_are_those_of_dense_algebra(small: SmallRun, kind: str, damping: float) -> None:
    """All at once: a curvature may be negative, so the Hessian's systems but for the generalized one get damping."""
    shift = damping if kind == "gauss_newton" else damping + 1.0
    with opened(small) as run:
        dense, mask = Dense.of(small, run), some(run.objective.vector.size)
        problem = influence_problem(run, CLASS, run.model, mask, examples=None)
        h, g = dense.curvature(REST, kind), dense.gradient(CLASS.drop) * 4 / 9
        chosen = mask.chosen
        eye = torch.eye(len(h), dtype=torch.float64)
        whole = torch.linalg.pinv(h + shift * eye, hermitian=True) @ g
        settings = {"curvature": kind, "solver": EXACT}
        close(PlainGradient().solve(problem), g * chosen)
        close(OriginalDirection(shift, **settings).solve(problem), whole)
        close(ProjectingDirection(shift, **settings).solve(problem), whole * chosen)
        frozen, columns = torch.zeros_like(g), h[:, chosen]
        within = h[chosen][:, chosen] + shift * torch.eye(mask.count, dtype=torch.float64)
        frozen[chosen] = torch.linalg.pinv(within, hermitian=True) @ g[chosen]
        close(FreezingDirection(shift, **settings).solve(problem), frozen)
        normal = columns.T @ columns + damping**2 * torch.eye(mask.count, dtype=torch.float64)
        general = torch.zeros_like(g)
        general[chosen] = torch.linalg.pinv(normal, hermitian=True) @ columns.T @ g
        close(GeneralizedDirection(damping, **settings).solve(problem), general)
        assert problem.gradients > 4


def test_second_order_is_that_of_dense_algebra_with_the_curvature_of_all(small: SmallRun) -> None:
    with opened(small) as run:
        dense = Dense.of(small, run)
        problem = influence_problem(run, CLASS, run.model, some(run.objective.vector.size), examples=None)
        found = SecondOrderDirection(DAMPING, "gauss_newton", EXACT).solve(problem)
    own, every = dense.curvature(CLASS.drop, "gauss_newton"), dense.curvature(tuple(range(13)), "gauss_newton")
    inverse = torch.linalg.inv(every + DAMPING * torch.eye(len(own), dtype=torch.float64))
    p = 4 / 13
    first = p / (1 - p) * inverse @ dense.gradient(CLASS.drop)
    close(found, first - p / (1 - p) * (first - inverse @ own @ first))


@dataclass
class Quadratic:
    """The curvature of a mean of squares, as a problem asks for it."""

    matrix: Tensor
    examples: int

    def product(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix


def test_the_second_order_is_subtracted_on_least_squares() -> None:
    """9 of 60 rows left out: the exact answer by the normal equations, and what either order says."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.ones(3, dtype=torch.float64) + torch.randn(60, generator=generator, dtype=torch.float64)
    own, rest = slice(0, 9), slice(9, 60)
    theta = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    exact = torch.linalg.lstsq(x[rest], y[rest, None]).solution[:, 0] - theta
    problem = InfluenceProblem(
        gradient=x[own].T @ (x[own] @ theta - y[own]) / 9,
        share=9 / 51,
        mask=ParameterMask(torch.ones(3, dtype=torch.bool)),
        retained=lambda kind: Quadratic(x[rest].T @ x[rest] / 51, 51),  # type: ignore[arg-type,return-value]
        forgotten=lambda kind: Quadratic(x[own].T @ x[own] / 9, 9),  # type: ignore[arg-type,return-value]
    )
    second = SecondOrderDirection(0.0, "hessian", EXACT).solve(problem)
    newton = OriginalDirection(0.0, "hessian", EXACT).solve(problem)
    every = x.T @ x / 60
    first = 9 / 51 * torch.linalg.solve(every, problem.gradient)
    plus = 2 * first - second
    errors = [float((found - exact).norm() / exact.norm()) for found in (first, second, newton, plus)]
    assert errors[1] <= 0.2 * errors[0]
    assert errors[3] > errors[0]
    assert errors[2] < 1e-10, "with the curvature of what is retained the first order is exact"


def test_new_labels_are_a_difference_of_gradients_over_all(small: SmallRun) -> None:
    relabel = Selection(relabel={1: 2, 4: 0})
    with opened(small) as run:
        dense = Dense.of(small, run)
        problem = influence_problem(run, relabel, run.model, some(run.objective.vector.size), examples=None)
    expected = dense.gradient((1, 4)) - dense.gradient((1, 4), torch.tensor([2, 0]))
    close(problem.gradient, expected)
    assert problem.share == 2 / 13


def test_the_natural_step_is_the_direction_and_the_stop_is_on_it(small: SmallRun) -> None:
    direction = FreezingDirection(DAMPING)
    with opened(small) as run:
        natural = InfluenceStep(direction, AllParameters(), NaturalStep(), examples=None).update(run, CLASS)
        stopped = InfluenceStep(direction, AllParameters(), examples=None).update(run, CLASS)
        final = run.model

        def gap(state: object) -> Tensor:
            return torch.cat([(v - final.params[n]).reshape(-1) for n, v in state.params.items()])  # type: ignore[attr-defined]

        step, far = gap(natural.state), gap(stopped.state)
        factor = float(far.norm() / step.norm())
        assert torch.allclose(far, factor * step, rtol=1e-9)

        def accuracy(times: float) -> float:
            start, end = final.params, natural.state.params
            params = {n: v + times * (end[n] - v) for n, v in start.items()}
            return right(small, type(final)(params=params), CLASS.drop)

    assert accuracy(factor) == 0
    assert accuracy(factor * (1 - 2.0**-5)) > 0, "not the shortest"
    assert natural.epochs is not None
    assert stopped.epochs is not None
    assert stopped.epochs > natural.epochs > 4 / 13


def test_negative_curvature_is_an_error_and_changes_nothing(small: SmallRun) -> None:
    before = host_fingerprint(small.model)
    step = InfluenceStep(OriginalDirection(0.0, "hessian"), AllParameters(), examples=None)
    with opened(small) as run, pytest.raises(DivergenceError, match=r"negative curvature.*try damping="):
        step.update(run, CLASS)
    assert host_fingerprint(small.model) == before


def test_bad_input_is_refused(small: SmallRun) -> None:
    step = InfluenceStep(PlainGradient(), AllParameters())
    with opened(small) as run:
        for selection in (
            Selection(),
            Selection(drop=(1,), relabel={2: 0}),
            Selection(drop=(13,)),
            Selection(drop=tuple(range(13))),
        ):
            with pytest.raises(ConfigurationError):
                step.update(run, selection)
        backwards = InfluenceStep(Backwards(), AllParameters(), StepToTheStop(Forgotten(0.5)))
        with pytest.raises(ForgettingError, match="does not lead there"):
            backwards.update(run, CLASS)
    for make in (
        lambda: FreezingDirection(-1),
        lambda: OriginalDirection(curvature="fisher"),  # type: ignore[arg-type]
        lambda: InfluenceStep(examples=0),
        lambda: InfluenceStep(batch_size=0),
        lambda: RestartedLissa(step=0.0),
    ):
        with pytest.raises(ConfigurationError):
            make()


class Backwards:
    """Descends on the set's loss: the model knows it ever better."""

    def solve(self, problem: InfluenceProblem) -> Tensor:
        return -problem.gradient


def system(matrix: Tensor) -> System:
    def product(rows: Tensor) -> Tensor:
        return rows @ matrix

    return System(curvature=product, of_batch=lambda rows, _: product(rows), batches=1, damping=0.0)


@pytest.mark.parametrize("largest", [1.0, 30.0])
def test_the_restarted_series_solves_once_its_normaliser_is_large_enough(largest: float) -> None:
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor([largest, 0.9, 0.6, 0.5], dtype=torch.float64)) @ basis.T
    b = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    solution = RestartedLissa(max_iterations=5000, tolerance=1e-12).solve(system(matrix), b)
    close(solution.values, b @ torch.linalg.inv(matrix))
    # A series cut off after two terms, by hand.
    short = RestartedLissa(max_iterations=2, normalizer=6.0).solve(system(matrix), b).values
    kept = torch.eye(4, dtype=torch.float64) - matrix / 36
    close(short, b / 36 @ (torch.eye(4, dtype=torch.float64) + kept + kept @ kept))


def test_a_series_that_always_diverges_is_an_error() -> None:
    with pytest.raises(DivergenceError, match="negative ones"):
        RestartedLissa(max_restarts=3).solve(system(-torch.eye(3, dtype=torch.float64)), torch.ones(1, 3).double())


def made_of(direction: Callable[..., object]) -> str:
    return repr(direction())


def test_directions_are_values() -> None:
    assert made_of(FreezingDirection) == made_of(FreezingDirection)
    assert GeneralizedDirection() == GeneralizedDirection()


def test_the_published_protocol_takes_curvature_and_choice_from_held_out_examples(small: SmallRun) -> None:
    """The direction by dense algebra on validation examples of other classes; the first step that forgets, by hand."""
    x, y = small.validation.dataset.tensors
    with opened(small) as run:
        direction = FreezingDirection(DAMPING, "gauss_newton", EXACT)
        published = PublishedInfluenceStep(direction, AllParameters(), norm=0.1, steps=400)
        updated = published.update(run, CLASS)
        gradient = Dense.of(small, run).gradient(CLASS.drop)
        held_out = Dense.of(replace(small, train=small.validation), run)
        final = run.model
    rest = tuple(j for j in range(10) if int(y[j]) != 1)
    system_of = held_out.curvature(rest, "gauss_newton") + DAMPING * torch.eye(len(gradient), dtype=torch.float64)
    step = torch.linalg.solve(system_of, gradient)
    far = torch.cat([(v - final.params[n]).reshape(-1) for n, v in updated.state.params.items()])
    close(far / far.norm(), step / step.norm())

    def accuracy(length: float, ids: tuple[int, ...]) -> float:
        logits = held_out.logits(held_out.theta + length * step / step.norm(), ids)
        return float((logits.argmax(1) == y[list(ids)]).double().mean())

    own = tuple(j for j in range(10) if int(y[j]) == 1)
    lengths, length, since, least = [], 0.1, 0, 1.0
    while not lengths or accuracy(lengths[-1], own) > 0:
        lengths.append((lengths[-1] if lengths else 0.0) + length)
        least, since = (accuracy(lengths[-1], own), 0) if accuracy(lengths[-1], own) < least else (least, since + 1)
        length, since = (length * 5, 0) if since >= 20 else (length, since)
    assert float(far.norm()) == pytest.approx(lengths[-1])
    with opened(small) as run:
        with pytest.raises(ForgettingError, match="needs neither"):
            PublishedInfluenceStep(direction, AllParameters(), norm=1e-6, steps=2).update(run, CLASS)
        for selection in (Selection(), Selection(relabel={1: 0}), Selection(drop=(99,)), Selection(drop=(0, 1, 2))):
            with pytest.raises(ConfigurationError):
                published.update(run, selection)
    with pytest.raises(ConfigurationError, match="norm > 0"):
        PublishedInfluenceStep(norm=0.0)
    assert x.shape == (10, 5)
