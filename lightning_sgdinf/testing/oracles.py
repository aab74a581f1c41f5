r"""Scores of a run by two roads that share no code with the walk.

`unrolled_scores` writes the whole training out as one function of the example weights and differentiates it in reverse
mode, all steps at once: exact to rounding, for runs of a few dozen steps of a small model. `central_differences` trains
again with one weight at :math:`1 \pm \epsilon`: true for any code whatever, to about six digits in float64.

Both give what an exact estimator must give, :math:`-\mathrm{d}q / \mathrm{d}w_j`: the change of the query had the
example been left out, to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Clip
from lightning_sgdinf.testing.updates import FORMULAS, Formula, Memory

Named = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses and buffers of one forward pass, as functions of parameters and buffers (with their graph).

    Attributes:
        each: Loss of each example of the batch, ``[B]``; the batch's loss is their mean plus ``rest``.
        rest: The part that no example owns (penalties).
        buffers: Buffers after the pass; those it leaves alone may be missing.
    """

    each: Tensor
    rest: Tensor | float = 0.0
    buffers: Named = field(default_factory=dict)


Forward = Callable[[Named, Named, Tensor, int, int], Losses]
"""``(parameters, buffers, example ids [B], step, micro-batch)`` to `Losses`; anything random must be seeded by step and
micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrolledStep:
    """One optimizer step.

    Attributes:
        batches: Example ids of each micro-batch, int64 ``[B]``.
        groups: Names and hyper-parameters of each param group at this step.
        accumulation: Divisor of each micro-batch's loss.
        clip: Gradient clipping, if any.
        average: ``(a, b)`` if ``average <- a * average + b * (parameters and buffers)`` after the step.
    """

    batches: Sequence[Tensor]
    groups: Sequence[tuple[Sequence[str], Mapping[str, Any]]]
    accumulation: int = 1
    clip: Clip | None = None
    average: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrolledRun:
    """A training run as functions.

    Attributes:
        params: Initial parameters.
        buffers: Initial buffers of floating point.
        steps: The optimizer steps.
        forward: The model and its loss.
        query: ``(parameters, buffers)`` at the end to the queries ``[Q]``; it is given the averages if there are any.
        optimizer: Class name, one of `FORMULAS`, or a formula.
        divisor: ``"kept"``, losses are divided by the batch's size; ``"reduced"``, by the sum of its weights.
        average_buffers: True if averages are taken of buffers, too; otherwise the query gets the last ones.
        curvature_scale: Factor of the dependence of each pass on the parameters when the whole is
            differentiated; the passes' values do not change.
    """

    params: Named
    buffers: Named = field(default_factory=dict)
    steps: Sequence[UnrolledStep]
    forward: Forward
    query: Callable[[Named, Named], Tensor]
    optimizer: str | Formula = "SGD"
    divisor: str = "kept"
    average_buffers: bool = True
    curvature_scale: float = 1.0


def unrolled_scores(run: UnrolledRun, examples: int, *, first_step: int = 0) -> Tensor:
    """Compute scores by autograd through the whole training.

    Args:
        run: The training, written out.
        examples: ``N``.
        first_step: Weights enter from this step on; before it they are 1 (what ``LastEpochs`` computes).

    Returns:
        Scores ``[N, Q]``; an example that was never drawn has 0.
    """
    weights = torch.ones(examples, dtype=next(iter(run.params.values())).dtype, requires_grad=True)
    params, buffers = unrolled_training(run, weights, first_step=first_step)
    values = run.query(params, buffers).reshape(-1)
    rows = [torch.autograd.grad(v, weights, retain_graph=True, allow_unused=True)[0] for v in values]
    return -torch.stack([torch.zeros_like(weights) if r is None else r for r in rows], dim=1).detach()


def unrolled_training(
    run: UnrolledRun, weights: Tensor, *, first_step: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters and buffers, or their averages, at the end of training with example weights ``[N]``."""
    params = {n: p.detach().clone().requires_grad_() for n, p in run.params.items()}
    buffers = {n: b.detach().clone() for n, b in run.buffers.items()}
    memory: dict[str, Memory] = {}
    average: dict[str, Tensor] | None = None
    formula = _formula(run.optimizer)
    for index, step in enumerate(run.steps):
        step_weights = weights if index >= first_step else torch.ones_like(weights)
        grads, buffers = _gradients(run, step, index, params, buffers, step_weights)
        grads = _clipped(grads, step)
        params = dict(params)
        for names, options in step.groups:
            for name in names:
                if (grad := grads[name]) is not None:
                    params[name], memory[name] = formula(params[name], grad, memory.get(name, {}), options)
        if step.average is not None:
            a, b = step.average
            now = {**params, **(buffers if run.average_buffers else {})}
            average = {n: b * v if average is None else a * average[n] + b * v for n, v in now.items()}
    if average is None:
        return params, buffers
    return {n: average[n] for n in params}, {n: average.get(n, v) for n, v in buffers.items()}


def central_differences(
    query_after: Callable[[Tensor], Tensor], examples: int, *, ids: Sequence[int] | None = None, eps: float = 1e-5
) -> Tensor:
    r"""Compute scores by training again: :math:`-(q(1 + \epsilon) - q(1 - \epsilon)) / 2\epsilon`.

    Args:
        query_after: Trains with the given example weights, float64 ``[N]``, from the same start on the same batches,
            and returns the queries ``[Q]``.
        examples: ``N``.
        ids: The examples; ``None`` for all.
        eps: Step; 1e-5 suits float64.

    Returns:
        Scores ``[len(ids), Q]``.
    """
    rows = []
    for example in range(examples) if ids is None else ids:
        ends = []
        for sign in (1, -1):
            weights = torch.ones(examples, dtype=torch.float64)
            weights[example] += sign * eps
            ends.append(query_after(weights).detach().reshape(-1))
        rows.append(-(ends[0] - ends[1]) / (2 * eps))
    return torch.stack(rows)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ``max|actual - expected| / max|expected|``.

    Raises:
        ConfigurationError: If the expected values are all zero: nothing is shown by agreeing with them.
    """
    size = expected.abs().max()
    if not size > 0:
        raise ConfigurationError(
            "the expected scores are all zero, so comparing with them shows nothing; use a run that learns"
        )
    return float((actual - expected).abs().max() / size)


def _gradients(
    run: UnrolledRun, step: UnrolledStep, index: int, params: Named, buffers: Named, weights: Tensor
) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    total: dict[str, Tensor | None] = dict.fromkeys(params)
    if (s := run.curvature_scale) != 1:
        params = {n: p.detach() + s * (p - p.detach()) for n, p in params.items()}
    for number, ids in enumerate(step.batches):
        losses = run.forward(params, buffers, ids, index, number)
        batch_weights = weights[ids]
        size = len(ids) if run.divisor == "kept" else batch_weights.sum()
        loss = ((batch_weights * losses.each).sum() / size + losses.rest) / step.accumulation
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
        for name, grad in zip(params, grads, strict=True):
            if grad is not None:
                before = total[name]
                total[name] = grad if before is None else before + grad
        buffers = {**buffers, **losses.buffers}
    return total, dict(buffers)


def _clipped(grads: Mapping[str, Tensor | None], step: UnrolledStep) -> dict[str, Tensor | None]:
    present = [g for g in grads.values() if g is not None]
    if step.clip is None or not present:
        return dict(grads)
    bound = step.clip.value
    if step.clip.algorithm == "value":
        return {n: None if g is None else g.clamp(-bound, bound) for n, g in grads.items()}
    norm = sum((g * g).sum() for g in present) ** 0.5
    factor = bound / (norm + 1e-6)
    if factor.item() >= 1:
        return dict(grads)
    return {n: None if g is None else g * factor for n, g in grads.items()}


def _formula(optimizer: str | Formula) -> Formula:
    if callable(optimizer):
        return optimizer
    if optimizer not in FORMULAS:
        raise ConfigurationError(
            f"optimizer {optimizer!r}: expected one of {', '.join(FORMULAS)}, or a formula of your own"
        )
    return FORMULAS[optimizer]
