"""Does the run with nothing left out come out as recorded, before anything is left out?

The recorded steps are taken again, by the very kernels of training, from stored state to stored state. At the
beginning, in the middle and at the end of the run replicas take them, too. A replica may round otherwise than training
did, and an optimizer like Adam blows up what is rounding only (the gradient of a bias before BatchNorm); so where
replicas end up elsewhere, the gradients decide whether they compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.optim.base import known_optimizers
from lightning_sgdinf.certificate import StepReplay
from lightning_sgdinf.errors import SgdInfluenceError, StepMismatchError
from lightning_sgdinf.log.records import Step
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.replay.counterfactual import stored_at_or_before
from lightning_sgdinf.replay.opened import OpenedRun
from lightning_sgdinf.replay.replayer import Replayer
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.replicas import Replicas
from lightning_sgdinf.truth.stacked_query import first_line

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Largest deviation of a state that is let pass, as a part of what its steps moved, by the precision computed in."""
COARSE = 1e-1
"""The same for lower precisions, and for a run that is taken again in another one than it was recorded in."""
GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference of gradients, as a part of their norm."""
STRETCH = 10
"""Steps between two comparisons, where every state is stored."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome.

    Attributes:
        replay: How the states compare.
        together: Whether many models can be trained at once.
        note: Why not, or what was seen; may be empty.
    """

    replay: StepReplay
    together: bool
    note: str


@dataclass(slots=True)
class _Seen:
    """The worst of what was compared so far."""

    tolerance: float
    steps: int = 0
    bitwise: int = 0
    largest: float = 0.0
    step: int = -1
    tensor: str = ""

    def add(self, deviation: float, tensor: str, start: int, stop: int) -> bool:
        """Count a stretch if it is as recorded, and say whether it is."""
        if not deviation <= self.tolerance:
            return False
        self.steps += stop - start
        self.bitwise += (stop - start) * (deviation == 0)
        if deviation > self.largest:
            self.largest, self.step, self.tensor = deviation, start, tensor
        return True

    def value(self) -> StepReplay:
        return StepReplay(
            steps=self.steps,
            bitwise=self.bitwise,
            largest_deviation=self.largest,
            step=self.step,
            tensor=self.tensor,
            tolerance=self.tolerance,
        )


def verify(run: OpenedRun, *, first_step: int = 0) -> Verified:
    """Take the recorded run again from the last stored state at or before a step.

    Args:
        run: The recorded run.
        first_step: From where on the run must be reproduced.

    Raises:
        StateNotStoredError: No state at or before ``first_step`` is stored.
        StepMismatchError: A stretch leads elsewhere than recorded; names step and tensor.
    """
    log, objective = run.log, run.objective
    dtype = objective.parameters[0].dtype
    other = {name for _, _, name in log.header.parameters} != {str(dtype).removeprefix("torch.")}
    seen = _Seen(COARSE if other else TOLERANCE.get(dtype, COARSE))
    note, together = "", log.header.optimizer in known_optimizers()
    if not together:
        note = f"{log.header.optimizer} is not known to work element by element."
    replayer = Replayer(log, objective)
    stretches = list(_stretches(log, first_step))
    tried = {0, len(stretches) // 2, len(stretches) - 1}
    for number, (start, stop) in enumerate(stretches):
        before, after = log.state(start), log.state(stop)
        deviation, tensor = _deviation(replayer.run(before, start, stop), before, after, joint=other)
        if not seen.add(deviation, tensor, start, stop):
            raise StepMismatchError(
                f"the recorded run cannot be reproduced, so nothing was left out of it: steps {start} to {stop - 1}, "
                f"done again, lead to another state than recorded; {tensor} differs by {deviation:.1e} of what the "
                f"steps moved (allowed {seen.tolerance:.0e}). Usual causes: weights or gradients changed outside the "
                "optimizer, randomness that is not torch's, numpy's or python's global generator, a model that was "
                "changed after training, another device or precision."
            )
        if not together or number not in tried:
            continue
        try:
            state = _by_replicas(run, before, start, stop)
            deviation, tensor = _deviation(state, before, after, joint=other)
            if not deviation <= seen.tolerance:
                gap = _gradient_gap(run, before, log.step(start))
                together = gap <= GRADIENT_TOLERANCE.get(dtype, COARSE)
                note = (
                    f"Rounding decides about {tensor} (steps {start} to {stop - 1}); gradients agree."
                    if together
                    else f"many models at once have other gradients than one alone (by {gap:.1e} at step {start})"
                )
        except SgdInfluenceError:
            raise
        except Exception as error:  # whatever an operation of the user's can fail with in a vectorised pass
            together, note = False, first_line(error)
    return Verified(seen.value(), together, note)


def _stretches(log: Trajectory, first_step: int) -> Iterator[tuple[int, int]]:
    """Pairs of stored states to go from one to the other, some steps apart."""
    start = stored_at_or_before(log, first_step)
    for stored in (int(t) for t in log.state_indices):
        if stored >= min(start + STRETCH, len(log)) and stored > start:
            yield start, stored
            start = stored


def _by_replicas(run: OpenedRun, state: ModelState, start: int, stop: int) -> ModelState:
    replicas = Replicas(run, state, torch.ones(2, run.examples, dtype=torch.bool))
    for step in run.log.steps(start, stop):
        replicas.advance(step)
    return replicas.state(1)


def _deviation(found: ModelState, before: ModelState, after: ModelState, *, joint: bool) -> tuple[float, str]:
    """The largest deviation of a tensor as a part of its movement, and which it is; of all at once if ``joint``."""
    old, new, taken = ({(p, n, k): _wide(v) for p, n, k, v in s.items()} for s in (before, after, found))
    gaps: dict[tuple[str, str, str], tuple[float, float]] = {}
    for key, value in taken.items():
        if key in new:
            moved = new[key] - old.get(key, torch.zeros_like(new[key]))
            size = moved if bool(moved.any()) else new[key]
            gaps[key] = float((value - new[key]).norm()), float(size.norm())
    if joint:
        own = [g for key, g in gaps.items() if key[0] == "param"]
        gap, size = (sum(g[i] ** 2 for g in own) ** 0.5 for i in (0, 1))
        return gap / size if size else gap, "all parameters"
    worst, name = 0.0, ""
    for (part, tensor, key), (gap, size) in gaps.items():
        ratio = gap / size if size else gap
        if not ratio <= worst:
            worst, name = ratio, f"{part} {tensor}" + (f" [{key}]" if key else "")
    return worst, name


def _gradient_gap(run: OpenedRun, state: ModelState, step: Step) -> float:
    """How much the gradient of a replica differs from that of a model alone, as a part of its norm."""
    objective = run.objective
    replicas = Replicas(run, state, torch.ones(2, run.examples, dtype=torch.bool))
    found = replicas.gradients(step)
    objective.load(state)
    alone: dict[str, Tensor] = {}
    for micro in step.micro_batches:
        loss = objective.trace(step, micro, objective.batch(step, micro)).loss
        for name, grad in zip(objective.vector.names, objective.gradient(loss), strict=True):
            if grad is not None:
                alone[name] = alone[name] + grad if name in alone else grad
    if alone.keys() != found.keys():
        return float("inf")
    gap = sum(float((_wide(found[n][1]) - _wide(g)).square().sum()) for n, g in alone.items()) ** 0.5
    size = sum(float(_wide(g).square().sum()) for g in alone.values()) ** 0.5
    return gap / size if size else gap


def _wide(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)
