r"""The gradient check of a walk: its scores against central differences of a re-run.

The weights of all examples of the window are moved at once, each by :math:`\pm\varepsilon` at random:

.. math:: -\frac{q(1 + \varepsilon d) - q(1 - \varepsilon d)}{2 \varepsilon} = \sum_j d_j\, \mathrm{score}_j .

So two re-runs look at every score, where a difference for each example would look at one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sgdinf.certificate import GradientCheck
from lightning_sgdinf.checks.plan import Plan
from lightning_sgdinf.checks.rerun import MOST_ROUNDED, ROUNDED_TIMES, Rerun
from lightning_sgdinf.errors import CertificateError, DataMismatchError


def check_gradient(rerun: Rerun, scores: Tensor, plan: Plan, ids: Tensor, column: int = 0) -> GradientCheck | None:
    """Compare the walk's scores of the window with central differences.

    Args:
        rerun: The window.
        scores: What the walk has accumulated at the window's start, ``[N, Q]``.
        plan: How many directions.
        ids: Examples that occur in the window.
        column: Which query.

    Returns:
        The result; ``None`` if no example of the window has any effect.

    Raises:
        CertificateError: If they disagree; says by how much and what usually causes it.
        DataMismatchError: If they disagree because the query is not the same function each time it is asked.
    """
    own = scores[:, column]
    scale = float(own.norm())
    if scale == 0:
        return None
    directions = _directions(len(own), ids, plan)
    tried: list[list[float]] = []
    for eps in rerun.steps:
        tried.append([_central_difference(rerun, d, eps, column) for d in directions])
        if _gap(own, directions, tried[-1]) <= rerun.tolerance:
            break
    measured = min(tried, key=lambda slopes: _gap(own, directions, slopes))
    error = _gap(own, directions, measured)
    tolerance = rerun.tolerance
    if not error <= tolerance:
        _expect_one_answer(rerun, column)
        wide = None if rerun.recorded is None else rerun.walked()[:, column]
        if wide is not None:  # steps that suit it suit the run, in whose precision they say less
            measured = min(tried, key=lambda slopes: _gap(wide, directions, slopes))
            error = _gap(own, directions, measured)
        tolerance = _expect_rounding(rerun, own, wide, directions, measured, len(ids), column)
    predicted = [float(d @ own) for d in directions]
    return GradientCheck(
        first_step=rerun.first_step,
        example_ids=(),
        predicted=tuple(predicted),
        measured=tuple(measured),
        relative_error=error,
        tolerance=tolerance,
        examples=len(ids),
        precision=rerun.precision,
        of=rerun.window.last_step,
    )


def _gap(scores: Tensor, directions: list[Tensor], measured: list[float]) -> float:
    """Return the largest difference of scores along directions from what was measured, relative to both."""
    predicted = [float(d @ scores) for d in directions]
    size = max(float(scores.norm()), *(abs(v) for v in (*measured, *predicted)))
    return max(abs(p - m) for p, m in zip(predicted, measured, strict=True)) / size


def _expect_rounding(
    rerun: Rerun,
    own: Tensor,
    wide: Tensor | None,
    directions: list[Tensor],
    measured: list[float],
    examples: int,
    column: int,
) -> float:
    """Make sure that a disagreement is rounding alone; return what rounding is measured to do.

    ``wide`` are the scores of a walk of the window in float64, which has to agree with the differences.

    Raises:
        CertificateError: It is not; says by how much.
    """
    predicted, error = [float(d @ own) for d in directions], _gap(own, directions, measured)
    where = (
        f"for the weights of {examples} examples moved at once in {len(directions)} random direction(s), the replay "
        f"says {predicted} from step {rerun.first_step} on, central differences of a re-run say {measured} (relative "
        f"error {error:.1e}, allowed {rerun.tolerance:.0e})"
    )
    if wide is not None:
        gap = _gap(wide, directions, measured)
        rounding = ROUNDED_TIMES * rerun.rounding(column) if gap <= rerun.tolerance else 0.0
        allowed = min(rounding, MOST_ROUNDED)
        if error <= allowed:
            return allowed
        if allowed:
            raise CertificateError(
                f"gradient check failed: {where}. A replay of the same steps in float64 agrees with them by {gap:.1e}, "
                f"and rounding explains {allowed:.1e}: an operation gives other numbers in the precision of the run. "
                "Score in float64, InfluenceRunner(precision='64-true'); certificate='off' gives the scores "
                "unchecked."
            )
    raise CertificateError(
        f"gradient check failed: {where}. Usual causes: an operation whose second derivative torch gets wrong (an "
        "autograd.Function whose backward is not its derivative), a tensor that training moves and that is no buffer, "
        "a loss with jumps. certificate='off' gives the scores unchecked."
    )


def _directions(examples: int, ids: Tensor, plan: Plan) -> list[Tensor]:
    """Return random signs for the examples of the window, zero for the others, each ``[N]``."""
    generator = torch.Generator().manual_seed(plan.seed)
    directions = []
    for _ in range(plan.directions):
        direction = torch.zeros(examples, dtype=torch.float64)
        direction[ids] = torch.randint(0, 2, (len(ids),), generator=generator).double() * 2 - 1
        directions.append(direction)
    return directions


def _expect_one_answer(rerun: Rerun, column: int) -> None:
    """Ask the same model twice; two answers have no derivative."""
    same = torch.ones(rerun.examples, dtype=torch.float64)
    once, again = rerun.value(same, column), rerun.value(same, column)
    if abs(once - again) > 1e-9 * max(abs(once), abs(again)):  # more than sums in another order make
        raise DataMismatchError(
            f"the query {rerun.query.names[column]!r} has two values at one and the same model, {once:.6g} "
            f"and {again:.6g}: expected the same validation examples in every pass. They, or the model, draw random "
            "numbers from a generator of their own; only torch's, numpy's and python's global generators begin anew "
            "with each pass. Draw from these, or pass a validation loader without augmentation."
        )


def _central_difference(rerun: Rerun, direction: Tensor, eps: float, column: int) -> float:
    up, down = (rerun.value(1 + sign * eps * direction, column) for sign in (1, -1))
    return -(up - down) / (2 * eps)
