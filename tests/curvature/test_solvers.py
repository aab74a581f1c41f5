"""Solvers on matrices that are written out, against numpy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sgdinf.curvature import ConjugateGradient, Dense, Lissa, MomentumDescent
from lightning_sgdinf.curvature.solvers import Solver, System, extreme_eigenvalues
from lightning_sgdinf.errors import ConfigurationError, DivergenceError

SIZE = 12


def matrices(eigenvalues: list[float], batches: int = 3, seed: int = 0) -> list[Tensor]:
    """Symmetric matrices of the same eigenvectors, whose mean has the given eigenvalues."""
    draw = np.random.default_rng(seed)
    q, _ = np.linalg.qr(draw.standard_normal((SIZE, SIZE)))
    spread = 1 + 0.3 * (np.arange(batches) - (batches - 1) / 2)[:, None]
    return [torch.from_numpy(q @ np.diag(scale * np.array(eigenvalues)) @ q.T) for scale in spread]


def system(parts: list[Tensor], damping: float = 0.0) -> System:
    mean = torch.stack(parts).mean(0)
    return System(curvature=lambda x: x @ mean, of_batch=lambda x, k: x @ parts[k], batches=len(parts), damping=damping)


GOOD = np.linspace(0.5, 3, SIZE).tolist()
INDEFINITE = [-0.4, *np.linspace(0.5, 3, SIZE - 1)]
B = torch.from_numpy(np.random.default_rng(1).standard_normal((2, SIZE)))


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [
        (ConjugateGradient(tolerance=1e-12), 1e-11),
        (Dense(), 1e-12),
        (MomentumDescent(lr=0.1, epochs=300), 1e-10),
        (MomentumDescent(lr=0.1, epochs=300, start="zero"), 1e-10),
        (Lissa(depth=400), 1e-10),
    ],
)
def test_solution_is_numpys(solver: Solver, tolerance: float, damping: float) -> None:
    parts = [torch.stack(matrices(GOOD)).mean(0)] * 3  # batches alike: the stochastic one converges, too
    expected = np.linalg.solve(parts[0].numpy() + damping * np.eye(SIZE), B.numpy().T).T
    solution = solver.solve(system(parts, damping), B)
    assert np.abs(solution.values.numpy() - expected).max() < tolerance
    assert solution.residual < 10 * tolerance
    assert (solution.iterations == 0) == isinstance(solver, Dense)


def test_one_zero_right_hand_side_does_not_stop_the_others() -> None:
    b = torch.stack([B[0], torch.zeros(SIZE, dtype=torch.float64)])
    parts = matrices(GOOD)
    solution = ConjugateGradient(tolerance=1e-12).solve(system(parts), b).values
    expected = torch.linalg.solve(torch.stack(parts).mean(0), B[0])
    assert torch.allclose(solution[0], expected, atol=1e-10)
    assert not solution[1].any()


def test_lissa_over_different_batches_comes_near() -> None:
    parts = matrices(GOOD)
    expected = torch.linalg.solve(torch.stack(parts).mean(0), B.T).T
    rough = Lissa(depth=300, repeats=1, scale=10).solve(system(parts), B).values
    fine = Lissa(depth=300, repeats=30, scale=10).solve(system(parts), B).values
    assert (fine - expected).norm() < 0.1 * expected.norm()
    assert (fine - expected).norm() < (rough - expected).norm()
    other = Lissa(depth=300, repeats=1, scale=10, seed=1).solve(system(parts), B).values
    assert not torch.equal(rough, other)


def test_dense_solves_an_indefinite_system() -> None:
    parts = matrices(INDEFINITE)
    expected = torch.linalg.solve(torch.stack(parts).mean(0), B.T).T
    assert torch.allclose(Dense().solve(system(parts), B).values, expected)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (ConjugateGradient(), "conjugate gradient met negative curvature"),
        (Lissa(depth=4000), "LiSSA diverged"),
        (MomentumDescent(epochs=4000), "gradient descent diverged"),
    ],
)
def test_negative_curvature_names_iteration_residual_and_a_damping_that_works(solver: Solver, words: str) -> None:
    parts = matrices(INDEFINITE)
    with pytest.raises(DivergenceError, match=words) as caught:
        solver.solve(system(parts), B)
    assert re.search(r"iteration \d+, relative residual \d\S*, damping 0\.", str(caught.value))
    match = re.search(r"from about (\S+) to (\S+): try damping=([\d.e-]+)", str(caught.value))
    assert match is not None, str(caught.value)
    low, high, wanted = (float(v.rstrip(",.")) for v in match.groups())
    assert low == pytest.approx(-0.4, rel=0.1)
    assert high == pytest.approx(3, rel=0.05)
    solver.solve(system(parts, wanted), B)  # no error


def test_nan_is_noticed_at_once() -> None:
    """A comparison with NaN is false: a loop that waits for a residual to fall would end as if it had."""
    broken = System(curvature=lambda x: x * torch.nan, of_batch=lambda x, k: x * torch.nan, batches=1, damping=0.1)
    for solver in (ConjugateGradient(), Lissa(scale=1.0), MomentumDescent()):
        with pytest.raises(DivergenceError, match=r"iteration 0, .*not finite"):
            solver.solve(broken, B)
    with pytest.raises(DivergenceError, match="not finite"):
        Dense().solve(broken, B)


def test_nan_along_the_way_is_noticed() -> None:
    calls = []

    def product(x: Tensor, number: int = 0) -> Tensor:
        calls.append(number)
        return x * (torch.nan if 3 <= len(calls) <= 4 else torch.linspace(0.5, 1, SIZE, dtype=torch.float64))

    for solver in (ConjugateGradient(tolerance=1e-12), Lissa(scale=1.0), MomentumDescent()):
        calls.clear()
        with pytest.raises(DivergenceError, match="iteration 2"):
            solver.solve(System(curvature=product, of_batch=product, batches=1, damping=0.0), B)


def test_steps_too_long_say_so() -> None:
    parts = matrices(GOOD)
    with pytest.raises(DivergenceError, match=r"try damping=\S+, or a larger scale than 1\."):
        Lissa(scale=1.0).solve(system(parts), B)
    with pytest.raises(DivergenceError, match=r"or a smaller lr than 3\."):
        MomentumDescent(lr=3.0).solve(system(parts), B)


def test_too_few_iterations_are_an_error() -> None:
    with pytest.raises(
        DivergenceError, match=r"(?s)did not reach a residual of 1e-12.*iteration 2,.*more max_iterations"
    ):
        ConjugateGradient(tolerance=1e-12, max_iterations=2).solve(system(matrices(GOOD)), B)
    with pytest.raises(DivergenceError, match="farther from a solution than zero"):
        Lissa(depth=3, scale=0.9).solve(system(matrices(GOOD, batches=1)), B)


def test_singular_curvature() -> None:
    parts = matrices([0.0] * SIZE)
    with pytest.raises(DivergenceError, match="singular"):
        Dense().solve(system(parts), B)


def test_dense_says_its_memory_before_it_starts() -> None:
    def never(x: Tensor, number: int = 0) -> Tensor:
        raise AssertionError

    asked = System(curvature=never, of_batch=never, batches=1, damping=0.0)
    with pytest.raises(ConfigurationError, match=r"20,000 parameters takes 6\.0 GiB"):
        Dense().solve(asked, torch.zeros(1, 20_000))


def test_extreme_eigenvalues() -> None:
    for values in (GOOD, INDEFINITE, [-3.0, *[0.1] * (SIZE - 1)]):
        mean = torch.stack(matrices(values)).mean(0)
        low, high = extreme_eigenvalues(lambda x, m=mean: x @ m, B)
        assert low == pytest.approx(min(values), abs=0.1)
        assert high == pytest.approx(max(values), abs=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ConjugateGradient(tolerance=0),
        lambda: ConjugateGradient(max_iterations=0),
        lambda: Lissa(depth=0),
        lambda: Lissa(repeats=0),
        lambda: Lissa(scale=-1.0),
        lambda: MomentumDescent(lr=0),
        lambda: MomentumDescent(momentum=1.0),
        lambda: MomentumDescent(epochs=0),
        lambda: MomentumDescent(start="there"),  # type: ignore[arg-type]
    ],
)
def test_impossible_settings(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="expected a value"):
        wrong()  # type: ignore[operator]


def test_the_curvature_that_was_met_is_in_the_message() -> None:
    """Power iterations seldom find the smallest of many eigenvalues near 0."""
    parts = matrices([-0.05, *np.linspace(0.0, 7, SIZE - 1)])
    with pytest.raises(DivergenceError, match="met negative curvature") as caught:
        ConjugateGradient().solve(system(parts, 0.01), B)
    match = re.search(r"from about (\S+) to \S+: try damping=([\d.e-]+)", str(caught.value))
    assert match is not None
    low, wanted = (float(v.rstrip(",.")) for v in match.groups())
    assert -0.05 * 1.001 <= low < -0.01  # else 0.01 of damping would have been enough
    assert wanted == pytest.approx(2 * abs(low), rel=0.01)
