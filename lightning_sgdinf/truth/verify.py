"""The run with nothing left out, compared with the record before anything is left out.

The recorded steps are taken again, by the very kernels of training, from stored state to stored state. At the
beginning, in the middle and at the end of the run replicas take them, too. A replica may round otherwise than training
did, and an optimizer like Adam blows up what is rounding only (the gradient of a bias before BatchNorm); so where
replicas end up elsewhere, the gradients decide whether they compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import known_optimizers
from lightning_sgdinf.certificate import StepReplay
from lightning_sgdinf.errors import SgdInfluenceError, StepMismatchError
from lightning_sgdinf.log import Step, Trajectory
from lightning_sgdinf.replay import OpenedRun, Replayer, stored_at_or_before
from lightning_sgdinf.replay.reproducibility import acting_hooks
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.replicas import Replicas
from lightning_sgdinf.truth.stacked_query import first_line

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Largest deviation of a state that is accepted, as a part of what its steps moved, by the precision computed in."""
COARSE = 1e-1
"""The same for lower precisions, and for a run that is taken again in another one than it was recorded in."""
GRADIENT_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
"""Largest difference of gradients, as a part of their norm."""
STRETCH = 10
"""Steps between two comparisons, where every state is stored."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of `verify`.

    Attributes:
        replay: Comparison of the states.
        stackable: True if many models can be trained at once.
        note: The reason if they cannot, or another remark; may be empty.
    """

    replay: StepReplay
    stackable: bool
    note: str


@dataclass(slots=True)
class _Worst:
    """The largest deviation of the states compared so far."""

    tolerance: float
    steps: int = 0
    bitwise: int = 0
    largest: float = 0.0
    step: int = -1
    tensor: str = ""

    def add(self, deviation: float, tensor: str, start: int, stop: int) -> bool:
        """Count a stretch if it is as recorded; return whether it is."""
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
    foreign_dtype = {name for _, _, name in log.header.parameters} != {str(dtype).removeprefix("torch.")}
    worst = _Worst(COARSE if foreign_dtype else TOLERANCE.get(run.precision, COARSE))
    note, stackable = "", log.header.optimizer in known_optimizers()
    if not stackable:
        note = f"{log.header.optimizer} is not known to work element by element."
    replayer = Replayer(log, objective)
    stretches = list(_stretches(log, first_step))
    tried = {0, len(stretches) // 2, len(stretches) - 1}
    for number, (start, stop) in enumerate(stretches):
        before, after = log.state(start), log.state(stop)
        deviation, tensor = _deviation(replayer.run(before, start, stop), before, after, joint=foreign_dtype)
        if not worst.add(deviation, tensor, start, stop):
            raise StepMismatchError(
                f"the recorded run cannot be reproduced, so nothing was left out of it: steps {start} to {stop - 1}, "
                f"re-run, lead to another state than recorded; {tensor} differs by {deviation:.1e} of what the "
                f"steps moved (allowed {worst.tolerance:.0e}). Usual causes: weights or gradients changed outside the "
                "optimizer, randomness that is not torch's, numpy's or python's global generator, a model that was "
                f"changed after training, another device or precision. {acting_hooks(log.header)}"
            )
        if not stackable or number not in tried:
            continue
        try:
            state = _by_replicas(run, before, start, stop)
            deviation, tensor = _deviation(state, before, after, joint=foreign_dtype)
            if not deviation <= worst.tolerance:
                gap = _gradient_gap(run, before, log.step(start))
                stackable = gap <= GRADIENT_TOLERANCE.get(run.precision, COARSE)
                note = (
                    f"Rounding decides about {tensor} (steps {start} to {stop - 1}); gradients agree."
                    if stackable
                    else f"many models at once have other gradients than one alone (by {gap:.1e} at step {start})"
                )
        except SgdInfluenceError:
            raise
        except Exception as error:  # whatever an operation of the user's can fail with in a vectorised pass
            stackable, note = False, first_line(error)
    return Verified(worst.value(), stackable, note)


def gradients_agree(run: OpenedRun, state: ModelState, step: Step) -> bool:
    """Return true if many models at once have, for a step, the gradients that each has alone."""
    return _gradient_gap(run, state, step) <= GRADIENT_TOLERANCE.get(run.precision, COARSE)


def _stretches(log: Trajectory, first_step: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of stored states to go from one to the other, some steps apart."""
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


def _deviation(reached: ModelState, before: ModelState, after: ModelState, *, joint: bool) -> tuple[float, str]:
    """Return the largest deviation of a tensor as a part of its movement, and its name; of all if ``joint``."""
    old, new, rerun = ({(p, n, k): _wide(v) for p, n, k, v in s.items()} for s in (before, after, reached))
    gaps: dict[tuple[str, str, str], tuple[float, float]] = {}
    for key, value in rerun.items():
        if key in new:
            moved = new[key] - old.get(key, torch.zeros_like(new[key]))
            size = moved if bool(moved.any()) else new[key]
            gaps[key] = float((value - new[key]).norm()), float(size.norm())
    if joint:
        of_params = [g for key, g in gaps.items() if key[0] == "param"]
        gap, size = (sum(g[i] ** 2 for g in of_params) ** 0.5 for i in (0, 1))
        return gap / size if size else gap, "all parameters"
    worst, name = 0.0, ""
    for (part, tensor, key), (gap, size) in gaps.items():
        ratio = gap / size if size else gap
        if not ratio <= worst:
            worst, name = ratio, f"{part} {tensor}" + (f" [{key}]" if key else "")
    return worst, name


def _gradient_gap(run: OpenedRun, state: ModelState, step: Step) -> float:
    """Return the difference of a replica's gradient from that of a model alone, as a part of its norm, or that of a
    buffer, as a part of what the pass moved, whichever is larger."""
    objective = run.objective
    replicas = Replicas(run, state, torch.ones(2, run.examples, dtype=torch.bool))
    stacked = replicas.gradients(step)
    objective.load(state)
    alone: dict[str, Tensor] = {}
    for micro in step.micro_batches:
        loss = objective.trace(step, micro, objective.batch(step, micro)).loss
        for name, grad in zip(objective.vector.names, objective.gradient(loss), strict=True):
            if grad is not None:
                alone[name] = alone[name] + grad if name in alone else grad
    if alone.keys() != stacked.keys():
        return float("inf")
    gap = sum(float((_wide(stacked[n][1]) - _wide(g)).square().sum()) for n, g in alone.items()) ** 0.5
    size = sum(float(_wide(g).square().sum()) for g in alone.values()) ** 0.5
    objective.put_back()
    return max(gap / size if size else gap, _buffer_gap(objective.buffers, replicas.state(1).buffers, state.buffers))


def _buffer_gap(alone: Mapping[str, Tensor], stacked: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> float:
    gaps = [0.0]
    for name, value in alone.items():
        if name in before and value.numel():
            gap, moved = _wide(stacked[name]) - _wide(value), _wide(value) - _wide(before[name])
            gaps.append(float(gap.norm() / moved.norm()) if bool(moved.any()) else float(gap.norm()))
    return max(gaps)


def _wide(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)
