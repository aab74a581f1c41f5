"""The gradient check of a walk: scores of sampled examples against central differences of a re-run."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_sgdinf.certificate import GradientCheck
from lightning_sgdinf.checks.plan import Plan
from lightning_sgdinf.checks.rerun import Rerun, strongest
from lightning_sgdinf.errors import CertificateError, DataMismatchError


def check_gradient(rerun: Rerun, scores: Tensor, plan: Plan, column: int = 0) -> GradientCheck | None:
    """Compare the walk's scores of the window with central differences.

    Args:
        rerun: The window.
        scores: What the walk has accumulated at the window's start, ``[N, Q]``.
        plan: How many examples.
        column: Which query.

    Returns:
        The result; ``None`` if no example of the window has any effect.

    Raises:
        CertificateError: If they disagree; says by how much and what usually causes it.
        DataMismatchError: If they disagree because the query is not the same function each time it is asked.
    """
    chosen = strongest(scores[:, column], plan.gradient_examples)
    if not chosen:
        return None
    predicted = [float(scores[j, column]) for j in chosen]
    measured, error = [0.0], math.inf
    for eps in rerun.steps:
        slopes = [_central_difference(rerun, j, eps, column) for j in chosen]
        size = max(abs(v) for v in (*slopes, *predicted))
        gap = max(abs(p - m) for p, m in zip(predicted, slopes, strict=True)) / size
        if gap < error:
            measured, error = slopes, gap
        if error <= rerun.tolerance:
            break
    else:
        _expect_one_answer(rerun, column)
        raise CertificateError(
            f"gradient check failed: for examples {chosen}, the walk says {predicted} from step {rerun.first_step} on, "
            f"central differences of a re-run say {measured} (relative error {error:.1e}, allowed "
            f"{rerun.tolerance:.0e}). Usual causes: an operation whose second derivative torch gets wrong "
            "(an autograd.Function whose backward is not its derivative), a tensor that training moves and that is no "
            "buffer, a loss with jumps. certificate='off' gives the scores unchecked."
        )
    return GradientCheck(
        first_step=rerun.first_step,
        example_ids=tuple(chosen),
        predicted=tuple(predicted),
        measured=tuple(measured),
        relative_error=error,
        tolerance=rerun.tolerance,
        precision=rerun.precision,
        of=rerun.window.last_step,
    )


def _expect_one_answer(rerun: Rerun, column: int) -> None:
    """Ask the same model twice; two answers have no derivative."""
    once, again = rerun.value({}, column), rerun.value({}, column)
    if abs(once - again) > 1e-9 * max(abs(once), abs(again)):  # more than sums in another order make
        raise DataMismatchError(
            f"the query {rerun.query.names[column]!r} has two values at one and the same model, {once:.6g} "
            f"and {again:.6g}: expected the same validation examples in every pass. They, or the model, draw random "
            "numbers from a generator of their own; only torch's, numpy's and python's global generators begin anew "
            "with each pass. Draw from these, or pass a validation loader without augmentation."
        )


def _central_difference(rerun: Rerun, example: int, eps: float, column: int) -> float:
    up = rerun.value({example: 1 + eps}, column)
    down = rerun.value({example: 1 - eps}, column)
    return -(up - down) / (2 * eps)
