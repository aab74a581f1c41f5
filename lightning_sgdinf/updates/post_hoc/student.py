"""A model that goes on learning from where the run ended: the loop that all methods of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.kernels import Interceptor
from lightning_sgdinf.log import Draw, MicroBatch
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.replay import Edit, OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.forgotten import expect_examples


@dataclass(frozen=True, slots=True)
class Sgd:
    """Settings of stochastic gradient descent with momentum.

    Attributes:
        learning_rate: > 0.
        momentum: In ``[0, 1)``.
        weight_decay: At least 0.
        batch_size: Examples per batch; ``None`` for as many as the run's first batch had.
        seed: Of the order, and of what the model draws.
    """

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate < inf and 0 <= self.momentum < 1 and 0 <= self.weight_decay < inf):
            raise ConfigurationError(
                f"expected learning_rate > 0, momentum in [0, 1) and weight_decay >= 0, got {self.learning_rate}, "
                f"{self.momentum} and {self.weight_decay}"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigurationError(f"batch_size: expected at least 1, got {self.batch_size}")


class Student:
    """The run's final model, going on to learn; valid while the run is open.

    Args:
        run: The run.
        sgd: Settings.

    Attributes:
        gradients: Example gradients computed so far; a forward pass counts a third.
        size: Examples per batch.
    """

    def __init__(self, run: OpenedRun, sgd: Sgd) -> None:
        self.run, self.sgd = run, sgd
        self.gradients = 0.0
        first, last = run.log.step(0), run.log.step(len(run.log) - 1)
        self.size = sgd.batch_size or sum(len(micro.example_ids) for micro in first.micro_batches)
        self._step = replace(last, micro_batches=(), accumulation=1)
        self._objective = run.objective
        self._velocity: list[Tensor] | None = None
        self._objective.load(run.model)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the trained parameters, in the run's order."""
        return self._objective.parameters

    def steps(self, count: int) -> int:
        """Return the number of batches that ``count`` examples make."""
        return max(1, -(-count // self.size))

    def order(self, ids: Sequence[int], salt: int = 0) -> Iterator[Tensor]:
        """Yield batches of ids in random order, without end; of sizes that differ by one at most."""
        generator = torch.Generator().manual_seed(self.sgd.seed * 1000 + salt)
        own = torch.tensor(sorted(ids))
        while True:
            shuffled = own[torch.randperm(len(own), generator=generator)]
            yield from shuffled.tensor_split(self.steps(len(own)))  # a batch of one has no variance

    def loss(self, ids: Tensor, edit: Edit | None = None) -> Tensor:
        """Return the mean training loss of examples, with its graph, in the modes of training."""
        batch = self.run.training.batch(ids)
        if edit is not None:
            batch = edit(batch, ids.numpy())
        self.gradients += len(ids)
        micro = MicroBatch(batch_idx=0, draws=(Draw(example_ids=ids.numpy()),))
        return self._objective.trace(self._step, micro, batch).loss

    def loss_and_logits(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean training loss of examples and the logits it is computed from; see `loss_logits_labels`."""
        return self.loss_logits_labels(ids)[:2]

    def loss_logits_labels(self, ids: Tensor, edit: Edit | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean training loss of examples, the logits it is computed from, ``[B, C]``, and labels ``[B]``.

        Raises:
            ConfigurationError: The loss is not one cross entropy of logits.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def look(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            named = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
            seen.append((named["input"], named["target"]))
            return func(*args, **kwargs)

        with Interceptor({F.cross_entropy: look}):
            loss = self.loss(ids, edit)
        if len(seen) != 1 or seen[0][0].ndim != 2 or len(seen[0][0]) != len(ids):
            raise ConfigurationError(
                "expected a training step whose loss is one call of cross_entropy with one row of logits per example, "
                f"got {len(seen)} such calls; a method that compares predictions is for these only"
            )
        return loss, *seen[0]

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of a loss in the trained parameters."""
        grads = self._objective.gradient(loss)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.parameters, strict=True)]

    def descend(self, loss: Tensor, *, mask: Sequence[Tensor] | None = None, decay: float | None = None) -> None:
        """Take a step down a loss; see `Sgd`.

        Args:
            loss: With its graph.
            mask: One per parameter, 0 where it must stay.
            decay: In the place of the settings' weight decay.

        Raises:
            NonFiniteError: The loss is not finite: the method diverged.
        """
        if not bool(torch.isfinite(loss.detach())):
            raise NonFiniteError("the loss is not finite any more: the method diverged; take a smaller learning rate")
        decay = self.sgd.weight_decay if decay is None else decay
        slopes = [g.add(p.detach(), alpha=decay) for g, p in zip(self.gradient(loss), self.parameters, strict=True)]
        if mask is not None:
            slopes = [g * m for g, m in zip(slopes, mask, strict=True)]
        velocity = self._velocity
        self._velocity = (
            slopes if velocity is None else [v * self.sgd.momentum + g for v, g in zip(velocity, slopes, strict=True)]
        )
        with torch.no_grad():
            for parameter, moving in zip(self.parameters, self._velocity, strict=True):
                parameter.sub_(moving, alpha=self.sgd.learning_rate)

    def rest(self) -> None:
        """Forget the velocity."""
        self._velocity = None

    def state(self) -> ModelState:
        """Return a copy of the model as it is."""
        vector = self._objective.vector
        params = {n: p.detach().clone() for n, p in zip(vector.names, self.parameters, strict=True)}
        return ModelState(params=params, buffers=self._objective.read_buffers())

    def split(self, mask: ParameterMask) -> list[Tensor]:
        """Return a mask as one tensor of zeros and ones per parameter."""
        like = self.parameters[0]
        return self._objective.vector.split(mask.chosen.to(like.device, like.dtype))


def retained(run: OpenedRun, selection: Selection) -> list[int]:
    """Return the ids that a selection does not drop.

    Raises:
        ConfigurationError: It names an example that the data set does not have, or drops none or all.
    """
    selection.check(run.examples)
    expect_examples([*selection.drop, *selection.relabel])
    rest = np.setdiff1d(np.arange(run.examples), selection.drop)
    if not len(rest):
        raise ConfigurationError(f"expected examples to retain, got a selection that drops all {run.examples}")
    return [int(j) for j in rest]


def expect_drops(selection: Selection) -> None:
    """Refuse a selection that relabels.

    Raises:
        ConfigurationError: It does.
    """
    if selection.relabel:
        raise ConfigurationError(
            "expected a selection that drops, got new labels; FineTuning and CounterfactualReplay take them"
        )


def taught(run: OpenedRun, sgd: Sgd, teach: Callable[[Student], ModelState], note: str) -> Updated:
    """Return what a lesson makes of the run's final model.

    Args:
        run: The run.
        sgd: Settings.
        teach: Teaches the student and returns its state.
        note: A sentence on it.
    """
    began = perf_counter()
    with random_state.seeded(sgd.seed):
        student = Student(run, sgd)
        state = teach(student)
    return Updated(state=state, seconds=perf_counter() - began, epochs=student.gradients / run.examples, notes=(note,))
