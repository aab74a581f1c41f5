"""Step replay: the states that recorded steps lead to when they are taken again, compared with the recorded ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import PulledStep, TakenStep
from lightning_sgdinf.bitwise import same_bits
from lightning_sgdinf.certificate import StepReplay
from lightning_sgdinf.errors import StepMismatchError
from lightning_sgdinf.log import Step
from lightning_sgdinf.parameters import ParameterVector, joined_view
from lightning_sgdinf.state import ModelState

Difference: TypeAlias = tuple[str, Tensor, Tensor, Tensor]
"""Name, value, recorded value and value before the step of a tensor."""

States: TypeAlias = tuple[ModelState, ModelState]
"""Before a step and after it."""

CHUNK = 1 << 16
"""Elements that are compared at once: few enough to stay in the processor's cache."""
STEP_TOLERANCE = 1e-2
"""Largest deviation of a rebuilt state that is let pass, as a part of the recorded step's own size."""


@dataclass(slots=True)
class StepComparison:
    """Compares the states that steps lead to with recorded ones."""

    steps: int = 0
    bitwise: int = 0
    largest: float = 0.0
    step: int = -1
    tensor: str = ""

    def value(self, *, precision: str = "", of: int = 0) -> StepReplay | None:
        """Return the result; ``None`` if nothing was compared.

        Args:
            precision: What the steps were re-run in.
            of: Number of steps of the run.
        """
        if self.steps == 0:
            return None
        return StepReplay(
            steps=self.steps,
            bitwise=self.bitwise,
            largest_deviation=self.largest,
            step=self.step,
            tensor=self.tensor,
            tolerance=STEP_TOLERANCE,
            precision=precision,
            of=of,
        )

    def settles(
        self, taken: TakenStep, buffers: Mapping[str, Tensor], step: Step, states: States, vector: ParameterVector
    ) -> bool:
        """Compare as `add` does, if nothing has to be known about rounding for it.

        Args:
            taken: The step, taken again.
            buffers: Those after it.
            step: Its record.
            states: Before it, and the recorded one that it must lead to.
            vector: The order of parameters.

        Returns:
            True if the state is as recorded, and counted.
        """
        differing = _differences(taken, buffers, *states, vector)
        worst, tensor = _worst(differing)
        if worst <= STEP_TOLERANCE:
            self._count(step, worst, tensor, same=not differing)
        return worst <= STEP_TOLERANCE

    def add(
        self,
        pulled: PulledStep,
        step: Step,
        before: ModelState,
        after: ModelState,
        vector: ParameterVector,
        rounded: Callable[[], Sequence[TakenStep]] = tuple,
    ) -> None:
        """Compare the state that a step led to with the recorded one.

        Args:
            pulled: The step, taken again.
            step: Its record.
            before: The state it was taken from.
            after: The recorded state it must lead to.
            vector: The order of parameters.
            rounded: Takes the step again with gradients as far apart as rounding may move them, element by element;
                asked where the states differ. What lies in between is no difference.

        Raises:
            StepMismatchError: They differ by more than `STEP_TOLERANCE`; names step and tensor.
        """
        assert pulled.taken is not None
        differing = _differences(pulled.taken, pulled.buffers, before, after, vector)
        worst, tensor = _worst(differing)
        if not worst <= STEP_TOLERANCE:
            worst, tensor = _worst(_beyond_rounding(differing, pulled, rounded(), vector))
        if not worst <= STEP_TOLERANCE:
            raise StepMismatchError(
                f"step {step.index}, taken again, leads to another state than the recorded one: {tensor} differs by "
                f"{worst:.1e} of the step's own size (allowed {STEP_TOLERANCE:.0e}). Usual causes: weights or "
                "gradients changed outside the optimizer (a callback, an overridden optimizer_step or "
                "configure_gradient_clipping), a batch changed by a callback or by on_train_batch_start (use "
                "on_after_batch_transfer or the data set), randomness that is not torch's, numpy's or python's global "
                "generator, a model that was changed after training, kernels that are not deterministic (TF32, other "
                "hardware)."
            )
        self._count(step, worst, tensor, same=not differing)

    def _count(self, step: Step, worst: float, tensor: str, *, same: bool) -> None:
        self.steps += 1
        self.bitwise += same
        if worst > self.largest:
            self.largest, self.step, self.tensor = worst, step.index, tensor


def _worst(differing: Sequence[Difference]) -> tuple[float, str]:
    worst, tensor = 0.0, ""
    for (name, *_), deviation in zip(differing, _deviations(differing), strict=True):
        if not deviation <= worst:  # a NaN counts as the largest
            worst, tensor = deviation, name
    return worst, tensor


def _deviations(differing: Sequence[Difference]) -> list[float]:
    """Return `_deviation` of each; that of small tensors, of which there are many, some of them at once."""
    deviations, waiting, size = [math.nan] * len(differing), [], 0
    for place, (_, value, recorded, _) in enumerate(differing):
        if not 0 < value.numel() == recorded.numel() <= CHUNK:
            deviations[place] = _deviation(*differing[place][1:])
            continue
        waiting.append(place)
        size += value.numel()
        if size >= 4 * CHUNK:
            _deviate_at_once(differing, waiting, deviations)
            waiting, size = [], 0
    if waiting:
        _deviate_at_once(differing, waiting, deviations)
    return deviations


def _deviate_at_once(differing: Sequence[Difference], places: Sequence[int], deviations: list[float]) -> None:
    """Put the deviations of some tensors into a list: one by one where they are not finite or did not move."""
    parts = zip(*(differing[p][1:] for p in places), strict=True)
    now, then, before = (torch.cat([t.detach().reshape(-1) for t in part]).to("cpu", torch.float64) for part in parts)
    lengths = torch.tensor([differing[p][1].numel() for p in places])
    far, near = (torch.segment_reduce(gap.abs_(), "max", lengths=lengths) for gap in (now - then, then - before))
    plain = (far.isfinite() & near.isfinite() & (near > 0)) | (far == 0)
    ratio = far / near.clamp_min(torch.finfo(near.dtype).tiny)
    for place, at_once, deviation in zip(places, plain.tolist(), ratio.tolist(), strict=True):
        deviations[place] = deviation if at_once else _deviation(*differing[place][1:])


def _beyond_rounding(
    differing: Sequence[Difference], pulled: PulledStep, rounded: Sequence[TakenStep], vector: ParameterVector
) -> list[Difference]:
    """Return the differences, each element as much smaller as rounding explains.

    A gradient that is zero but for rounding (of an attention key's bias) becomes a whole step of Adam in any direction.
    How much rounding moves each element is measured, so that no other element gets away.
    """
    assert pulled.taken is not None
    here = _values(pulled.taken, vector)
    others = [_values(taken, vector) for taken in rounded]
    beyond: list[Difference] = []
    for name, value, recorded, before in differing:
        if name in here and others:
            spread = torch.stack([(other[name] - here[name]).abs() for other in others]).amax(0).to(value.device)
            gap = value - recorded.to(value)
            left = recorded.to(value) + gap.sign() * (gap.abs() - spread.view(value.shape)).clamp(min=0)
            value = torch.where(gap.isfinite(), left, value)
        beyond.append((name, value, recorded, before))
    return beyond


def _values(taken: TakenStep, vector: ParameterVector) -> dict[str, Tensor]:
    """Return parameters and optimizer state that a step led to, by their names in messages."""
    params, optimizer = taken.state_after(vector)
    values = {f"parameter {name}": value for name, value in params.items()}
    values |= {
        f"optimizer state {key} of {name}": v for name, entries in optimizer.items() for key, v in entries.items()
    }
    return values


def _differences(
    taken: TakenStep, buffers: Mapping[str, Tensor], before: ModelState, after: ModelState, vector: ParameterVector
) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Return name, value, recorded value and value before the step of each tensor that differs."""
    differing: list[tuple[str, Tensor, Tensor, Tensor]] = []
    recorded = joined_view([after.params[n] for n in vector.names])
    rebuilt = taken.params.to(recorded.device)
    if not _same(rebuilt, recorded.to(rebuilt.dtype)):
        old = joined_view([before.params[n] for n in vector.names]).to(recorded.device)
        parts = zip(vector.names, *(vector.split(v) for v in (rebuilt, recorded, old)), strict=True)
        differing += [(f"parameter {name}", *values) for name, *values in parts]
    for stretch, update in taken.stretches:
        for key, value in update.state.items():
            differing += _differences_of_optimizer(key, value, stretch.names, before, after)
    for name, value in buffers.items():
        kept = after.buffers.get(name)
        if kept is not None and not _same(value.to(kept.device), kept):
            differing.append((f"buffer {name}", value, kept, before.buffers.get(name, torch.zeros_like(kept))))
    return differing


def _differences_of_optimizer(
    key: str, value: Tensor, names: Sequence[str], before: ModelState, after: ModelState
) -> Iterator[Difference]:
    """Yield what `_differences` returns of one entry of the optimizer's state of neighbouring parameters.

    ``value`` is one number for each of them or their tensors in a row, which are compared as they are.
    """
    shapes = [after.params[n].shape if value.ndim else value.shape for n in names]
    recorded = [after.optimizer.get(n, {}).get(key) for n in names]
    comparable = [v for v, shape in zip(recorded, shapes, strict=True) if v is not None and v.shape == shape]
    if value.ndim and len(comparable) == len(names):
        joined = joined_view(comparable)
        if _same(value.to(joined.device, joined.dtype), joined):
            return
    parts = value.split([shape.numel() for shape in shapes]) if value.ndim else [value] * len(names)
    for name, shape, part, kept in zip(names, shapes, parts, recorded, strict=True):
        if kept is not None and kept.shape == shape:
            own = part.view(shape).to(kept.device, kept.dtype)
            if value.ndim or not _same(own, kept):
                earlier = before.optimizer.get(name, {}).get(key)
                yield (
                    f"optimizer state {key} of {name}",
                    own,
                    kept,
                    torch.zeros_like(kept) if earlier is None else earlier,
                )


def _same(value: Tensor, recorded: Tensor) -> bool:
    """Return true if tensors are equal, NaN and infinity included."""
    if value.shape != recorded.shape:
        return False
    alike = value.dtype == recorded.dtype and value.is_cpu and recorded.is_cpu
    return (
        (alike and same_bits(value, recorded))
        or torch.equal(value, recorded)
        or (bool(value.isnan().any()) and bool(torch.isclose(value, recorded, rtol=0, atol=0, equal_nan=True).all()))
    )


def _deviation(value: Tensor, recorded: Tensor, before: Tensor) -> float:
    """Return the largest difference over the largest recorded movement (over the values, where nothing moved)."""
    if not recorded.numel():
        return 0.0
    far = near = 0.0
    for now, then, earlier in _chunks(value, recorded, before):
        # Of numbers close to each other, the difference is exact in their own precision.
        far, near = max(far, _largest(now - then)), max(near, _largest(then - earlier))
    if math.isfinite(far) and math.isfinite(near) and near > 0:
        return far / near
    return _deviation_of_any(value, recorded, before)


def _largest(gap: Tensor) -> float:
    """Return the largest absolute value; infinity where one is not a number."""
    size = float(gap.abs().max())
    return math.inf if math.isnan(size) else size


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors piece by piece on the processor, in float32 at least and in the widest of their precisions."""
    wide = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    for parts in zip(*(t.detach().reshape(-1).split(CHUNK) for t in tensors), strict=True):
        yield tuple(part.to("cpu", wide) for part in parts)


def _deviation_of_any(value: Tensor, recorded: Tensor, before: Tensor) -> float:
    """Return `_deviation` where not all elements are numbers, or none moved."""
    gap = moved = largest = torch.zeros((), dtype=torch.float64)
    for parts in _chunks(value, recorded, before):
        now, then, earlier = (part.to(torch.float64) for part in parts)
        same = (now == then) | (now.isnan() & then.isnan())
        gap = torch.maximum(gap, (now - then).masked_fill(same, 0).abs().max())
        finite = then.isfinite()
        step = (then - earlier).masked_fill(~(finite & earlier.isfinite()), 0)
        moved = torch.maximum(moved, step.abs().max())
        largest = torch.maximum(largest, then.masked_fill(~finite, 0).abs().max())
    size = moved if moved > 0 else largest
    return float(gap / size) if size > 0 else float(gap)
