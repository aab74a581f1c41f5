r"""The set's gradient and the curvature of what is retained, from which influence directions are computed.

Leaving a set ``C`` of ``n`` examples out of the mean over ``N`` moves the minimiser, to first order, by

.. math:: \frac{n}{N - n}\, H^{-1} \bar g_C,

with :math:`\bar g_C` the set's mean gradient and ``H`` the Hessian of the *retained* training examples, which makes it
a Newton step on these. New labels move it by :math:`\frac{n}{N} H^{-1} (\bar g_C - \bar g'_C)`, ``H`` of all examples,
:math:`\bar g'_C` with the new labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sgdinf.curvature import Solution, Solver, System, TrainingCurvature
from lightning_sgdinf.curvature.products import Kind
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import Examples, OpenedRun, ReplaceLabels, relabelled, replace_second
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.forgotten import expect_examples


@dataclass(slots=True)
class InfluenceProblem:
    """A set of examples, to be left out or relabelled, at a model.

    Attributes:
        gradient: Of the set's mean loss, ``[P]``; with new labels, the difference of the old ones' and theirs.
        share: What it is multiplied by: ``n / (N - n)``, or ``n / N`` with new labels.
        mask: The parameters that may change.
        retained: Makes products with the curvature of retained examples.
        forgotten: The same of the set.
        gradients: Example gradients computed so far; a product counts two for each of its examples.
    """

    gradient: Tensor
    share: float
    mask: ParameterMask
    retained: Callable[[Kind], TrainingCurvature]
    forgotten: Callable[[Kind], TrainingCurvature]
    gradients: float = 0.0
    _made: dict[tuple[str, Kind], TrainingCurvature] = field(default_factory=dict)

    def product(self, kind: Kind, rows: Tensor) -> Tensor:
        """Multiply the curvature of the retained examples by each row, ``[Q, P]``."""
        return self._product("retained", kind, rows)

    def product_of_set(self, kind: Kind, rows: Tensor) -> Tensor:
        """Multiply the curvature of the set by each row, ``[Q, P]``."""
        return self._product("forgotten", kind, rows)

    def solve(
        self,
        product: Callable[[Tensor], Tensor],
        b: Tensor,
        *,
        damping: float,
        solver: Solver,
        mask: ParameterMask | None = None,
    ) -> Tensor:
        """Return ``x [P]`` with ``(A_JJ + damping) x_J = b_J`` and zeros outside of the mask ``J``.

        Args:
            product: Multiplies ``A`` by rows ``[Q, P]``.
            b: ``[P]``.
            damping: At least 0.
            solver: Solves the system.
            mask: ``J``; all parameters if ``None``.
        """
        within = ParameterMask(torch.ones_like(b, dtype=torch.bool)) if mask is None else mask

        def curvature(rows: Tensor) -> Tensor:
            return within.restrict(product(within.expand(rows)))

        system = System(curvature=curvature, of_batch=lambda rows, _: curvature(rows), batches=1, damping=damping)
        solution: Solution = solver.solve(system, within.restrict(b[None]))
        return within.expand(solution.values)[0]

    def _product(self, of: str, kind: Kind, rows: Tensor) -> Tensor:
        if (of, kind) not in self._made:
            self._made[of, kind] = (self.retained if of == "retained" else self.forgotten)(kind)
        curvature = self._made[of, kind]
        self.gradients += 2 * curvature.examples * len(rows)
        return curvature.product(rows)


def influence_problem(
    run: OpenedRun,
    selection: Selection,
    model: ModelState,
    mask: ParameterMask,
    *,
    examples: int | None = 512,
    seed: int = 0,
    batch_size: int = 500,
    replace_labels: ReplaceLabels = replace_second,
    curvature_of: Examples | None = None,
) -> InfluenceProblem:
    """Load a model and return the problem; it can be used until another model is loaded.

    Args:
        run: The run.
        selection: Drops or relabels examples.
        model: Where to compute.
        mask: The parameters that may change.
        examples: Retained examples that the curvature is of, at random; ``None`` for all.
        seed: Of their choice.
        batch_size: Examples per pass.
        replace_labels: How labels are changed in a batch.
        curvature_of: Examples whose curvature takes the place of the retained ones'; all of them.

    Raises:
        ConfigurationError: The set is empty, both drops and relabels, or is the whole training set.
        UntappedLossError: The loss has a term that example weights do not reach.
    """
    expect_examples([*selection.drop, *selection.relabel])
    if selection.drop and selection.relabel:
        raise ConfigurationError("expected a selection that drops or relabels, got one that does both; take two steps")
    count, own = run.examples, torch.tensor(sorted(selection.drop or selection.relabel))
    rest = torch.ones(count, dtype=torch.bool)
    rest[own] = False
    if not bool(rest.any()):
        raise ConfigurationError(f"expected examples to retain, got a selection of all {count}")
    kept = rest.nonzero()[:, 0]
    if examples is not None and examples < len(kept):
        kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:examples]].sort().values
    run.audit()  # weights reach the whole loss, and whose row is whose is known before any graph is kept
    objective, like = run.objective, run.log.step(len(run.log) - 1)
    objective.load(model)
    edit = relabelled(selection.relabel, replace_labels) if selection.relabel else None

    def of(ids: Tensor, data: Examples | None = None) -> Callable[[Kind], TrainingCurvature]:
        return lambda kind: TrainingCurvature(objective, like, ids, kind=kind, batch_size=batch_size, data=data)

    gradient = TrainingCurvature(objective, like, own, batch_size=batch_size).gradient()
    if edit is not None:
        gradient -= TrainingCurvature(objective, like, own, batch_size=batch_size, edit=edit).gradient()
    share = len(own) / (count - len(own)) if edit is None else len(own) / count
    mask = ParameterMask(mask.chosen.to(gradient.device))
    passes = 1 if edit is None else 2
    retained = of(kept) if curvature_of is None else of(torch.arange(len(curvature_of)), curvature_of)
    return InfluenceProblem(gradient, share, mask, retained, of(own), gradients=float(passes * len(own)))
