r"""Energy alignment: a set's inputs are moved to where the model that learnt its failures is sure, and taught anew.

With :math:`\theta_{+F}` the model that learnt its failures (`lightning_sgdinf.updates.repair.learnt`) and its energy

.. math:: E(x) = -\log \sum_c \exp f_{+F}(x)_c,

the set's inputs take some steps :math:`x \leftarrow clip(x - \eta \nabla_x E(x))` inside the range of the data, their
labels become the model's answers there, soft; then the final model is trained on with these and all other examples, in
its last layers or in all. Cost: the failures' model, the steps, and the epochs of training.

Measured, the moved inputs bring nothing over soft labels on a set's own inputs (``steps=0``), and in the last layer
alone a random set gains as much as any other: it is the tuning that helps (docs/results/repair.md).

References:
    Huang et al., 2023, as reported; the settings are not recoverable, and these are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.curvature import class_logits, likelihood_at
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun, ReplacedInputs
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.base import Updated
from lightning_sgdinf.updates.masks import AllParameters, ParameterCriterion
from lightning_sgdinf.updates.post_hoc.student import Sgd, Student, expect_drops, retained
from lightning_sgdinf.updates.repair.consolidation import ElasticWeights, learnt
from lightning_sgdinf.updates.repair.failures import Failures


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyAligned(Updated):
    """The outcome of `EnergyAlignment`.

    Attributes:
        energy_before: Mean energy of the set's own inputs.
        energy_after: Of the moved ones.
    """

    energy_before: float
    energy_after: float


@dataclass(frozen=True, slots=True, eq=False)
class AlignedInputs:
    """A set's inputs, moved, with soft labels.

    Attributes:
        ids: Of the examples, ``[n]``, increasing.
        inputs: ``[n, ...]``, as a batch has them.
        targets: Class probabilities, ``[n, C]``.
        energies: Mean energy before the first step and after each, in nats.
    """

    ids: tuple[int, ...]
    inputs: Tensor
    targets: Tensor
    energies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EnergyAlignment:
    """Soft labels on moved inputs; see the module's text.

    Attributes:
        failures: Whose learning gives the model that inputs are aligned with.
        steps: Down the energy; 0 leaves the inputs as they are.
        step_size: > 0, in units of the inputs over those of their energy's gradient.
        epochs: Of training afterwards, at least 1.
        parameters: Chooses the parameters that are trained: `LastLayers`, or all.
        weights: What holds the failures' model.
        valid_range: Smallest and largest value of an input; those of the training set if ``None``.
        sgd: Settings of the training.
        batch_size: Examples per pass.
    """

    failures: Failures
    steps: int = 10
    step_size: float = 0.1
    epochs: int = 2
    parameters: ParameterCriterion = field(default_factory=AllParameters)
    weights: ElasticWeights = field(default_factory=ElasticWeights)
    valid_range: tuple[float, float] | None = None
    sgd: Sgd = field(default_factory=lambda: Sgd(weight_decay=0.0))
    batch_size: int = 500

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.step_size < inf or self.epochs < 1 or self.batch_size < 1:
            raise ConfigurationError(
                f"EnergyAlignment: expected steps >= 0, step_size > 0, epochs >= 1 and batch_size >= 1, got "
                f"{self.steps}, {self.step_size}, {self.epochs} and {self.batch_size}"
            )
        if self.valid_range is not None:
            object.__setattr__(self, "valid_range", tuple(self.valid_range))
            if len(self.valid_range) != 2 or not self.valid_range[0] < self.valid_range[1]:
                raise ConfigurationError(
                    f"EnergyAlignment(valid_range): expected two increasing numbers, got {self.valid_range}"
                )

    def update(self, run: OpenedRun, selection: Selection) -> EnergyAligned:
        """Align and train on, see `ModelUpdate`.

        Raises:
            ConfigurationError: The selection is empty, relabels, names an example that the data set does not have, or
                drops all; the run is not that of a classifier, or its inputs are not one floating-point tensor.
            NonFiniteError: The training diverged.
        """
        retained(run, selection)
        expect_drops(selection)
        began = perf_counter()
        with random_state.seeded(self.sgd.seed):
            aligned = align(
                run,
                learnt(run, self.failures, self.weights),
                tuple(sorted(selection.drop)),
                steps=self.steps,
                step_size=self.step_size,
                valid_range=self.valid_range or input_range(run, self.batch_size),
                batch_size=self.batch_size,
            )
            mask = self.parameters.choose(run, run.model, aligned.ids)
            student = Student(run, self.sgd)
            state = self._taught(student, aligned, student.split(mask), run.examples)
        return EnergyAligned(
            state=state,
            seconds=perf_counter() - began,
            notes=(
                f"{len(aligned.ids)} inputs took {self.steps} steps down the energy, from {aligned.energies[0]:.3g} to "
                f"{aligned.energies[-1]:.3g}; then {self.epochs} epochs in {mask.count} parameters.",
            ),
            energy_before=aligned.energies[0],
            energy_after=aligned.energies[-1],
        )

    def _taught(self, student: Student, aligned: AlignedInputs, mask: list[Tensor], examples: int) -> ModelState:
        edit = ReplacedInputs(dict(zip(aligned.ids, aligned.inputs, strict=True)))
        soft = {j: place for place, j in enumerate(aligned.ids)}
        batches = student.order(range(examples))
        for _ in range(self.epochs * student.steps(examples)):
            ids = next(batches)
            _, logits, labels = student.loss_logits_labels(ids, edit)
            own = F.one_hot(labels, logits.shape[1]).to(logits)
            for row, example in enumerate(ids.tolist()):
                if example in soft:
                    own[row] = aligned.targets[soft[example]].to(own)
            student.descend(-(own * logits.log_softmax(1)).sum(1).mean(), mask=mask)
        return student.state()


def align(
    run: OpenedRun,
    model: ModelState,
    ids: tuple[int, ...],
    *,
    steps: int,
    step_size: float,
    valid_range: tuple[float, float],
    batch_size: int = 500,
) -> AlignedInputs:
    """Move inputs down a model's energy, and return them with the model's answers there.

    Args:
        run: The run.
        model: Whose energy it is.
        ids: Of training examples, at least one.
        steps: How many.
        step_size: Of each.
        valid_range: What inputs are clipped to.
        batch_size: Examples per pass.

    Raises:
        ConfigurationError: The inputs are not one floating-point tensor ``[B, ...]``, the first part of a batch.
    """
    examples, low_high = run.training.plain(), valid_range
    inputs, targets, sums = [], [], [0.0] * (steps + 1)
    with likelihood_at(run, model) as likelihood:
        for own in torch.tensor(ids).split(batch_size):
            batch = examples.batch(own)
            x = _inputs(batch).detach().clone()
            for step in range(steps + 1):
                energy, slope, probabilities = _energy(likelihood, batch, x)
                sums[step] += energy
                if step < steps:
                    x = (x - step_size * slope).clamp(*low_high)
            inputs.append(x.cpu())
            targets.append(probabilities.cpu())
    return AlignedInputs(ids, torch.cat(inputs), torch.cat(targets), tuple(s / len(ids) for s in sums))


def input_range(run: OpenedRun, batch_size: int = 500) -> tuple[float, float]:
    """Return the smallest and the largest value of the training inputs, without random augmentation."""

    def compute() -> tuple[float, float]:
        with random_state.preserved():
            ends = [
                (float(_inputs(b).min()), float(_inputs(b).max())) for _, b in run.training.plain().batches(batch_size)
            ]
        return min(low for low, _ in ends), max(high for _, high in ends)

    return run.once("input range", compute)


def _energy(likelihood: Callable[[Any], Any], batch: Any, x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the sum of the energies, its gradient in the inputs, and class probabilities ``[B, C]``."""
    leaf = x.detach().requires_grad_()
    moved = [leaf, *batch[1:]] if isinstance(batch, list) else (leaf, *batch[1:])
    logits = class_logits(likelihood(moved))
    energy = -logits.logsumexp(1).sum()
    (slope,) = torch.autograd.grad(energy, [leaf])
    return float(energy.detach()), slope, logits.detach().softmax(1)


def _inputs(batch: Any) -> Tensor:
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        raise ConfigurationError(
            f"EnergyAlignment: expected batches (x, y, ...) with a tensor of inputs, got {type(batch).__name__}"
        )
    if not batch[0].is_floating_point():
        raise ConfigurationError(
            f"EnergyAlignment: expected floating-point inputs, which can be moved a little, got {batch[0].dtype}; it "
            "is not for tokens"
        )
    return batch[0]
