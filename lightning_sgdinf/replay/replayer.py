"""Recorded steps taken again, forwards: as they were, or with other example weights, labels or inputs.

This is training without the Trainer: the user's ``training_step`` on the recorded batches under the recorded random
numbers, gradient clipping by torch's own functions, the step by the recorded optimizer class itself. With nothing
changed it reproduces the run bit for bit on the same machine. With weights it is counterfactual SGD: the same batches,
initial state, learning rates and divisor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.log import Clip, MicroBatch, ParamGroup, Step, Trajectory
from lightning_sgdinf.replay.edits import Edit
from lightning_sgdinf.replay.objective import Objective
from lightning_sgdinf.replay.recorded_gradients import recorded_gradients
from lightning_sgdinf.replay.recorded_optimizer import RecordedOptimizer
from lightning_sgdinf.state import ModelState

Divisor: TypeAlias = Literal["kept", "reduced"]
"""What the losses of a batch are divided by when examples are left out: ``"kept"``, by the number of all, ``|S_t|``;
``"reduced"``, by what is left: each mean by the rows (with their class weights) whose examples are left."""


class Replayer:
    """Takes recorded steps again.

    Args:
        log: The record.
        objective: The model's training step, opened.
        divisor: What the losses of a batch are divided by in runs with ``weights``.
        seen: Is shown the gradients of every step taken, before they are clipped; one per parameter.

    Attributes:
        gradients: Example gradients computed so far.
    """

    def __init__(
        self,
        log: Trajectory,
        objective: Objective,
        *,
        divisor: Divisor = "kept",
        seen: Callable[[Step, Sequence[Tensor | None]], None] | None = None,
    ) -> None:
        self.log = log
        self.objective = objective
        self.gradients = 0
        self._divisor: Divisor = divisor
        self._seen = seen
        self._recorded_optimizer = RecordedOptimizer(log.header.optimizer)

    def advance(
        self, state: ModelState, step: Step, *, weights: Tensor | None = None, edit: Edit | None = None
    ) -> ModelState:
        """Take one step; see `run`."""
        return self._take(state, [step], weights, edit)

    def run(
        self,
        state: ModelState,
        start: int,
        stop: int,
        *,
        weights: Tensor | None = None,
        edit: Edit | None = None,
    ) -> ModelState:
        """Take steps ``start .. stop - 1`` from a given state.

        Args:
            state: State ``start``, as recorded or not.
            start: First step.
            stop: One past the last step, at most ``T``.
            weights: Weight of each training example's loss term, ``[N]``; 0 leaves it out. ``None`` is the run as
                recorded.
            edit: Changes batches before they are taken.

        Returns:
            State ``stop``, in memory of its own.

        Raises:
            ConfigurationError: If the steps are not in the log.
        """
        if not 0 <= start <= stop <= len(self.log):
            raise ConfigurationError(
                f"steps {start} to {stop}: expected 0 <= start <= stop <= {len(self.log)}, the length of the log"
            )
        return self._take(state, self.log.steps(start, stop), weights, edit)

    def _take(self, state: ModelState, steps: Iterable[Step], weights: Tensor | None, edit: Edit | None) -> ModelState:
        objective = self.objective
        objective.load(state)
        optimizer: torch.optim.Optimizer | None = None
        grouping: tuple[tuple[str, ...], ...] = ()
        optimizer_state = state.optimizer
        for number, step in enumerate(steps):
            if number:
                refuse_changes(step)
            self._backward(step, weights, edit)
            clip_parameters(objective.parameters, step, objective.vector.names)
            names = tuple(g.params for g in step.groups)
            if optimizer is None or names != grouping:
                if optimizer is not None:
                    optimizer_state = self._read(optimizer, grouping)
                optimizer, grouping = self._optimizer(step.groups, optimizer_state), names
            for group, recorded in zip(optimizer.param_groups, step.groups, strict=True):
                group.update(self._recorded_optimizer.options(recorded))
            optimizer.step()
            for parameter in objective.parameters:
                parameter.grad = None
        return ModelState(
            params={n: p.detach().clone() for n, p in zip(objective.vector.names, objective.parameters, strict=True)},
            buffers=objective.read_buffers(),
            optimizer=self._read(optimizer, grouping) if optimizer is not None else state.optimizer,
        )

    def _backward(self, step: Step, weights: Tensor | None, edit: Edit | None) -> None:
        parameters = self.objective.parameters
        total: list[Tensor | None] = [None] * len(parameters)
        rows, sparse = self.objective.passes.sparse_rows, self._recorded_optimizer.takes_sparse
        rows.clear()
        # As in training: every process adds up its own gradients, and then those of all are added.
        for _, micros in groupby(step.micro_batches, key=lambda micro: micro.rank):
            for micro in micros:
                loss = self._loss(step, micro, weights, edit)
                with self.objective.passes.phase.taking_gradient(), rows.noting():
                    loss.backward()
            for place, parameter in enumerate(parameters):
                before, own = total[place], parameter.grad
                total[place] = own if before is None else before if own is None else before + own
                parameter.grad = None
        if self.objective.vanishing.elements:
            total = [rows.dense(*each) for each in zip(parameters, total, strict=True)]
        total = self.objective.vanishing.restored(step, total)
        if self._seen is not None:
            self._seen(step, total)
        grads = recorded_gradients(step, self.objective.vector.names, total, parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = rows.only(parameter, grad) if sparse else grad

    def _loss(self, step: Step, micro: MicroBatch, weights: Tensor | None, edit: Edit | None) -> Tensor:
        objective = self.objective
        batch = objective.batch(step, micro)
        ids = micro.example_ids
        self.gradients += len(ids)
        if edit is not None:
            batch = edit(batch, ids)
        own = None
        if weights is not None:
            own = weights[torch.tensor(ids)].to(objective.host.device, objective.parameters[0].dtype)
        return objective.trace(step, micro, batch, own, reduced=self._divisor == "reduced").loss

    def _optimizer(
        self, groups: Sequence[ParamGroup], state: Mapping[str, Mapping[str, Tensor]]
    ) -> torch.optim.Optimizer:
        by_name = dict(zip(self.objective.vector.names, self.objective.parameters, strict=True))
        optimizer = self._recorded_optimizer.make([([by_name[n] for n in g.params], g) for g in groups])
        recorded = {name: dtype for name, _, dtype in self.log.header.parameters}
        for name, entries in state.items():
            parameter = by_name[name]
            optimizer.state[parameter] = {
                k: v.detach()
                .clone()
                .to(
                    parameter.device if v.ndim else v.device,
                    parameter.dtype if _like(v, parameter, recorded[name]) else v.dtype,
                )
                for k, v in entries.items()
            }
            if self._recorded_optimizer.takes_sparse:  # it counts its steps in a number that is no tensor
                optimizer.state[parameter] |= {k: int(v) for k, v in entries.items() if not v.ndim}
        return optimizer

    def _read(
        self, optimizer: torch.optim.Optimizer, grouping: Sequence[Sequence[str]]
    ) -> dict[str, dict[str, Tensor]]:
        state: dict[str, dict[str, Tensor]] = {}
        entries = {id(p): s for p, s in optimizer.state.items()}
        held = {n for group in grouping for n in group}
        for name, parameter in zip(self.objective.vector.names, self.objective.parameters, strict=True):
            own = entries.get(id(parameter), {})
            values = {k: _as_recorded(v) for k, v in own.items() if isinstance(v, (Tensor, int, float))}
            if name in held and values:
                state[name] = values
        return state


def refuse_changes(step: Step) -> None:
    """Stop where the run was changed by something that is not in the record.

    Raises:
        UnsupportedRunError: If something other than the optimizer changed the state just before the step.
    """
    if not step.changed:
        return
    buffers = [name.removeprefix("buffer ") for name in step.changed if name.startswith("buffer ")]
    schedule = (
        f" If {buffers[0]} is a number that a schedule sets, whatever the weights are, train with a plain attribute "
        "(a float, no registered buffer): those are recorded, and replay holds them as they were."
        if len(buffers) == len(step.changed)
        else ""
    )
    raise UnsupportedRunError(
        f"before step {step.index} something other than the optimizer changed {', '.join(step.changed[:3])} (a "
        "callback or hook that edits weights or buffers); what that does to other weights is not known, so nothing can "
        "be carried across it. Stay behind that step (last_epochs, fewer of the last epochs), choose an estimator that "
        f"looks at the final model alone (FinalParameters, KohLiang), or train without it.{schedule}"
    )


def clip_parameters(parameters: Sequence[torch.nn.Parameter], step: Step, names: Sequence[str]) -> None:
    """Clip ``.grad`` in place as the Trainer did before the recorded step."""
    clip: Clip | None = step.clip
    if clip is None:
        return
    held = {n for g in step.groups for n in g.params}
    own = [p for n, p in zip(names, parameters, strict=True) if n in held]
    if clip.algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(own, clip.value)
    else:
        torch.nn.utils.clip_grad_value_(own, clip.value)


def _as_recorded(value: Tensor | float) -> Tensor:
    """Return an optimizer's tensor or number as a log has it."""
    return value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def _like(value: Tensor, parameter: Tensor, recorded: str) -> bool:
    """Tell if an optimizer's tensor holds numbers as its parameter does; without dimensions it may be a counter."""
    alike = value.is_floating_point() and value.shape == parameter.shape
    return alike and (value.ndim > 0 or dtype_name(value.dtype) == recorded)
