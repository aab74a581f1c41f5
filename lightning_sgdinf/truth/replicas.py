r"""Many models that take the same recorded steps at once, each with example weights of its own.

With ``L`` replicas, every tensor of the state has the replicas in its first dimension. One ``torch.func.vmap`` of the
user's ``training_step`` gives the ``L`` losses, and because replicas do not see each other one backward pass through
their sum gives every replica's gradient:

.. math:: \nabla_{\theta_l} \sum_{k} L_k(\theta_k) = \nabla L_l(\theta_l).

The optimizer steps on the stacked parameters as they are: an optimizer that has an update rule works element by
element. Clipping by norm is done replica by replica. Random numbers are those of the record, the same for all replicas.

Cost of a step: that of ``L`` training steps in floating-point operations, that of one in python and in batches made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf.batch_structure import map_tensors
from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.held_tensors import call_with
from lightning_sgdinf.log import Clip, MicroBatch, ParamGroup, Step
from lightning_sgdinf.replay import (
    Divisor,
    LossRows,
    Objective,
    OpenedRun,
    RecordedOptimizer,
    feed,
    recorded_gradients,
    refuse_changes,
)
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class Stack:
    """The states of ``L`` replicas.

    Attributes:
        params: ``[L, *shape]`` by name.
        buffers: Those that are real numbers, ``[L, *shape]`` by name.
        shared: The other buffers, the same for all replicas (counters, indices), ``[*shape]``.
        memory: The optimizer's tensors that have the shape of their parameter, ``[L, *shape]`` by name and key.
        fed: What the steps so far fed a running average, float64 ``[L, *shape]`` by name.
    """

    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    memory: Mapping[str, Mapping[str, Tensor]]
    fed: Mapping[str, Tensor]


class Replicas:
    """A stack of models on its way through a recorded run.

    All replicas start as copies of one state. The module of the objective is used as it is; what it holds is
    overwritten.

    Args:
        run: The recorded run.
        state: The state all replicas start from.
        keep: True where a replica trains on an example, bool ``[L, N]``.
        divisor: What the losses of a batch are divided by.
    """

    def __init__(self, run: OpenedRun, state: ModelState, keep: Tensor, *, divisor: Divisor = "kept") -> None:
        self.objective, self.keep = run.objective, keep
        objective = run.objective
        self._divisor: Divisor = divisor
        self._kind = RecordedOptimizer(run.log.header.optimizer)
        like = objective.parameters[0]
        count = len(keep)
        spread = lambda v: _stacked(v.to(like.device, like.dtype if v.is_floating_point() else v.dtype), count)  # noqa: E731
        self._params = {n: nn.Parameter(spread(state.params[n])) for n in objective.vector.names}
        self._buffers = {n: spread(v) for n, v in state.buffers.items() if v.is_floating_point()}
        self._shared = {n: v.clone() for n, v in state.buffers.items() if not v.is_floating_point()}
        self._fed: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._layout: tuple[tuple[str, ...], ...] = ()
        self._memory: dict[str, dict[str, Tensor]] = {}
        for name, entries in state.optimizer.items():
            shape = state.params[name].shape
            self._memory[name] = {
                k: spread(v) if len(shape) and v.shape == shape and v.is_floating_point() else v.clone()
                for k, v in entries.items()
            }
        self._steps_taken = 0

    def __len__(self) -> int:
        return len(self.keep)

    @property
    def stack(self) -> Stack:
        """Return the replicas' present states; not copies."""
        memory = {
            n: {k: v for k, v in entries.items() if self._is_stacked(n, v)} for n, entries in self._read().items()
        }
        params = {n: p.detach() for n, p in self._params.items()}
        return Stack(params, self._buffers, self._shared, memory, self._fed)

    def state(self, replica: int) -> ModelState:
        """Return a copy of one replica's state."""
        memory = self._read()
        return ModelState(
            params={n: p.detach()[replica].clone() for n, p in self._params.items()},
            buffers={
                **{n: v[replica].clone() for n, v in self._buffers.items()},
                **{n: v.clone() for n, v in self._shared.items()},
            },
            optimizer={
                n: {k: (v[replica] if self._is_stacked(n, v) else v).clone() for k, v in entries.items()}
                for n, entries in memory.items()
            },
        )

    def join(self, keep: Tensor) -> None:
        """Add replicas that were the same as replica 0 so far.

        Args:
            keep: True where one of them trains on an example, bool ``[K, N]``.
        """
        before = self.keep
        self.select(torch.cat([torch.arange(len(self)), torch.zeros(len(keep), dtype=torch.int64)]))
        self.keep = torch.cat([before, keep])

    def select(self, replicas: Tensor) -> None:
        """Go on with these replicas only, in this order; a replica may be taken several times.

        Args:
            replicas: int64 ``[K]``.
        """
        self._memory = {
            n: {k: v[replicas] if self._is_stacked(n, v) else v for k, v in entries.items()}
            for n, entries in self._read().items()
        }
        self._params = {n: nn.Parameter(p.detach()[replicas]) for n, p in self._params.items()}
        self._buffers = {n: v[replicas] for n, v in self._buffers.items()}
        self._fed = {n: v[replicas] for n, v in self._fed.items()}
        self.keep = self.keep[replicas]
        self._optimizer = None

    def advance(self, step: Step) -> None:
        """Take one recorded step.

        Raises:
            NonFiniteError: If a replica's loss is NaN or infinite; names the step.
            UnsupportedRunError: If something other than the optimizer changed the run before the step.
        """
        if self._steps_taken:
            refuse_changes(step)
        self._steps_taken += 1
        reached = self.gradients(step)
        parameters = list(self._params.values())
        grads = recorded_gradients(step, [*self._params], [reached.get(n) for n in self._params], parameters)
        _clip([g for g in grads if g is not None], step.clip)
        optimizer = self._optimizer_for(step.groups)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        for parameter in self._params.values():
            parameter.grad = None
        self._fed = feed(self._fed, {**self._params, **self._buffers}, step)

    def gradients(self, step: Step) -> dict[str, Tensor]:
        """Return each replica's gradient, ``[L, *shape]`` by name, where a loss depends on it; moves the buffers."""
        objective = self.objective
        total: dict[str, Tensor] = {}
        for micro in step.micro_batches:
            before = {n: v.clone() for n, v in self._buffers.items()} if micro.rank else {}, self._shared
            losses = self._losses(step, micro, objective.batch(step, micro))
            grads = torch.autograd.grad(losses.sum(), list(self._params.values()), allow_unused=True)
            for name, grad in zip(self._params, grads, strict=True):
                if grad is not None:
                    total[name] = total[name] + grad if name in total else grad.contiguous()
            if micro.rank:  # what another training process than 0 made of the buffers was lost
                self._buffers, self._shared = before
        return total

    def _losses(self, step: Step, micro: MicroBatch, batch: Any) -> Tensor:
        objective = self.objective
        objective.load_buffers(self._shared)
        objective.prepare(step, micro)
        kept = self.keep[:, torch.as_tensor(micro.example_ids)]
        like = objective.parameters[0]
        weights, reduced = kept.to(like.device, like.dtype), self._divisor == "reduced"

        def take(owners: Sequence[Tensor] | None) -> tuple[Tensor, PassStructure]:
            ask = objective.asker(step, micro, batch)
            forward_pass = OnePass(objective, step, micro, owners, ask, reduced=reduced)
            own = map_tensors(batch, torch.clone)  # a step may change its batch, and may have to be taken twice

            def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], weights: Tensor) -> Tensor:
                return forward_pass.loss({**params, **buffers}, own, weights)

            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")  # that an operation is not vectorised only costs time
                losses = torch.func.vmap(loss, randomness="same")(dict(self._params), self._buffers, weights)
            return losses, PassStructure.of(*forward_pass.taps, losses.sum(), weights.shape[1])

        buffers = {n: v.clone() for n, v in self._buffers.items()}

        def again() -> None:
            self._buffers = {n: v.clone() for n, v in buffers.items()}  # the next pass moves them in place
            objective.load_buffers(self._shared)

        losses, structure = objective.owned(step, micro, take, again=again)
        if not micro.without_loss and objective.admit(step, micro, structure, again=again):
            again()
            losses, _ = objective.owned(step, micro, take, again=again)
        self._shared = {n: objective.buffers[n].detach().clone() for n in self._shared}
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            replica = int(bad[0])
            left_out = (~self.keep[replica]).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"the training loss of step {step.index} is {losses[replica].item()} with examples {left_out[:5]} left "
                f"out ({len(bad)} of {len(self)} runs): training diverges without them, so their effect is not a "
                "number. Leave them out of the question, or ask at an earlier step."
            )
        return losses

    def _optimizer_for(self, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
        layout = tuple(g.params for g in groups)
        if self._optimizer is None or layout != self._layout:
            self._memory = self._read()
            self._layout = layout
            optimizer = self._kind.make([([self._params[n] for n in g.params], g) for g in groups])
            self._spread_scalars(groups)
            for name, entries in self._memory.items():
                optimizer.state[self._params[name]] = entries
            self._optimizer = optimizer
        for param_group, recorded in zip(self._optimizer.param_groups, groups, strict=True):
            param_group.update(self._kind.options(recorded))
        return self._optimizer

    def _spread_scalars(self, groups: Sequence[ParamGroup]) -> None:
        """Stack the optimizer's tensors of parameters without dimensions, but for those that are one per parameter.

        Their shape does not tell them apart; that of a trial parameter's with two elements does.
        """
        for group in groups:
            known = [n for n in group.params if self._params[n].ndim == 1 and n in self._memory]
            if not known:
                continue
            trial = nn.Parameter(torch.zeros(2))
            trial.grad = torch.ones(2)
            optimizer = self._kind.make([([trial], group)])
            optimizer.step()
            entrywise = {
                k for k, v in optimizer.state[trial].items() if isinstance(v, Tensor) and v.shape == trial.shape
            }
            for name in known:
                entries = self._memory[name]
                self._memory[name] = {
                    k: _stacked(v, len(self)) if k in entrywise and v.ndim == 0 else v for k, v in entries.items()
                }

    def _read(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's tensors by parameter and key."""
        if self._optimizer is None:
            return self._memory
        entries = {id(p): s for p, s in self._optimizer.state.items()}
        held = {n for group in self._layout for n in group}
        memory = {}
        for name, parameter in self._params.items():
            values = {k: v.detach() for k, v in entries.get(id(parameter), {}).items() if isinstance(v, Tensor)}
            if name in held and values:
                memory[name] = values
        return memory

    def _is_stacked(self, name: str, value: Tensor) -> bool:
        return value.ndim > 0 and value.shape == self._params[name].shape


class OnePass(nn.Module):
    """One pass of a step as a function of named tensors, to be vectorised.

    Args:
        objective: The opened model.
        step: The step.
        micro: The pass.
        owners: Of the rows of each loss, where they were matched for this pass.
        ask: Returns the owners of a call's rows as the user says them.
        reduced: Let losses divide by what is left.

    Attributes:
        taps: Names of the loss functions that carried weights, and the owners of the rows of each.
    """

    def __init__(
        self,
        objective: Objective,
        step: Step,
        micro: MicroBatch,
        owners: Sequence[Tensor] | None = None,
        ask: Callable[[LossRows], Tensor | None] | None = None,
        *,
        reduced: bool = False,
    ) -> None:
        super().__init__()
        self.module = objective.module  # ``call_with`` puts tensors into it
        self.taps: tuple[Sequence[str], Sequence[Tensor]] = (), ()

        def run(batch: Any, weights: Tensor) -> Tensor:
            how: dict[str, Any] = {"stacked": True, "reduced": reduced, "owners": owners, "ask": ask}
            how["lossless"] = micro.without_loss
            trace = objective.forward(step, micro.batch_idx, batch, weights, **how)
            self.taps = trace.taps, trace.owners
            return trace.loss

        self._forward = run

    def loss(self, tensors: Mapping[str, Tensor], batch: Any, weights: Tensor | None) -> Tensor:
        """Compute the loss at some parameters and buffers; weights ``[B]`` enter its gradient."""
        named = {f"module.{n}": v for n, v in tensors.items()}
        return call_with(self, named, batch, weights)

    def forward(self, batch: Any, weights: Tensor) -> Tensor:
        """Run the pass; called by ``call_with``."""
        return self._forward(batch, weights)


def _stacked(value: Tensor, count: int) -> Tensor:
    return value.detach().expand(count, *value.shape).clone(memory_format=torch.contiguous_format)


def _clip(grads: Sequence[Tensor], clip: Clip | None) -> None:
    """Clip in place, replica by replica, as the Trainer did."""
    if clip is None or not grads:
        return
    if clip.algorithm == "value":
        for grad in grads:
            grad.clamp_(-clip.value, clip.value)
        return
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) if g.ndim > 1 else g.abs() for g in grads]
    total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    factor = (clip.value / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
