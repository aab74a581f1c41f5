"""The plain values that a run's record is made of.

Recording makes these values and replay reads them; they are all that the two share. Times are counted as follows: a run
of ``T`` optimizer steps has states ``0 .. T``; step ``t`` takes state ``t`` to state ``t + 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from lightning_sgdinf.random_state import RandomState

CONTINUED = "continued"
"""Member of `Header.extra`: each time the run was continued, with which step, when, and under what settings."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One fetch from one data loader.

    Attributes:
        loader: Position of the loader among the run's loaders (0 unless several are combined).
        example_ids: Indices that the dataset of that loader was asked for, int64 ``[B]``, in batch order.
        random: State of the generators in the process that produced the batch, just before its first example was
            fetched; empty if it was not taken.
        digest: Checksum of the collated batch, see `lightning_sgdinf.log.batch_digest`; ``None`` if it was not taken.
        single: The loader has ``batch_size=None``: the dataset's item is the batch, and is not collated.
        listed: Of a single draw: the data set was asked for the whole list of indices at once.
        batch: Reads the collated batch itself, as `lightning_sgdinf.log.batch_bytes` writes it; ``None`` if it was not
            stored.
    """

    loader: int = 0
    example_ids: np.ndarray
    random: RandomState = field(default_factory=dict)
    digest: int | None = None
    single: bool = False
    listed: bool = False
    batch: Callable[[], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One forward and backward pass.

    Attributes:
        batch_idx: The index that ``training_step`` was given.
        draws: The origin of its examples; one entry unless loaders are combined. Empty if examples have no ids
            (iterable datasets).
        transferred_with: Generators of the training process when the batch was handed over (before the batch-transfer
            hooks).
        stepped_with: Generators of the training process just before ``training_step``.
        attributes: Plain attributes of the module that have changed since the fit was set up, by path, as
            `lightning_sgdinf.log.attribute_values` writes them; at the first batch of a fit all there are.
        carried: Paths of those that ``training_step`` changed itself, but for integers.
        without_loss: ``training_step`` returned none, so that the pass gave no gradient.
        rank: Number of the training process that did it. All begin a step with the buffers of process 0, and only what
            that one makes of them stays.
    """

    batch_idx: int
    draws: tuple[Draw, ...]
    transferred_with: RandomState = field(default_factory=dict)
    stepped_with: RandomState = field(default_factory=dict)
    attributes: Mapping[str, Json] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    without_loss: bool = False
    rank: int = 0

    @property
    def example_ids(self) -> np.ndarray:
        """Ids of all its examples, int64 ``[B]``, loaders one after another."""
        if len(self.draws) == 1:
            return self.draws[0].example_ids
        return np.concatenate([d.example_ids for d in self.draws]) if self.draws else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamGroup:
    """One param group of the optimizer, as it stood when the step was taken.

    Attributes:
        params: Names of its parameters in the module, in the optimizer's order.
        options: Every other entry (``lr``, ``momentum``, ``betas``, ``eps``, ``nesterov`` ...); tuples become lists,
            tensors numbers.
    """

    params: tuple[str, ...]
    options: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Clip:
    """Gradient clipping as the Trainer did it, between backward and step.

    Attributes:
        value: ``gradient_clip_val``, > 0.
        algorithm: ``"norm"`` (joint 2-norm of the optimizer's parameters) or ``"value"`` (elementwise).
    """

    value: float
    algorithm: Literal["norm", "value"] = "norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """All that is needed to take one optimizer step again, but for the state it started from.

    Attributes:
        index: ``t``, counting from 0 the steps that were really taken.
        epoch: The Trainer's ``current_epoch``.
        global_step: The Trainer's ``global_step`` before the step.
        micro_batches: The passes whose gradients it summed, in order; of several training processes one after another,
            0 last.
        groups: The optimizer's param groups with the hyper-parameters of this step.
        accumulation: Divisor of each micro-batch's loss: the Trainer's ``accumulate_grad_batches``, times the
            number of training processes, whose gradients are averaged.
        clip: Gradient clipping, if any.
        eval_modules: Names of sub-modules that were in eval mode during the step (``""`` is the module itself).
        without_gradient: Names of the parameters in `groups` that had no gradient when the optimizer stepped, so that
            it left them alone: frozen ones, and such as no pass reached. ``None`` if it was not recorded.
        average: ``(a, b)`` if a weight-averaging callback did ``average <- a * average + b * params`` after the step,
            with the parameters after the step.
        loss: Training loss of the last micro-batch as returned by ``training_step``, for display; may be NaN.
        changed: `TensorSpec.label` of the tensors that something other than the optimizer changed just before the step:
            state ``t`` is then not what step ``t - 1`` led to.
        validation: The validation pass after the step, if there was one: metrics that were logged, and checksums of the
            model and of the first batch.
    """

    index: int
    epoch: int
    global_step: int
    micro_batches: tuple[MicroBatch, ...]
    groups: tuple[ParamGroup, ...]
    accumulation: int = 1
    clip: Clip | None = None
    eval_modules: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] | None = None
    average: tuple[float, float] | None = None
    loss: float | None = None
    changed: tuple[str, ...] = ()
    validation: Mapping[str, Json] | None = None

    @property
    def example_ids(self) -> np.ndarray:
        """Ids of all examples of the step, int64, micro-batches one after another."""
        parts = [m.example_ids for m in self.micro_batches]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @property
    def first_pass(self) -> MicroBatch:
        """The first of its passes that had a loss; the first, if none had."""
        return next((m for m in self.micro_batches if not m.without_loss), self.micro_batches[0])

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Learning rate of each param group."""
        return tuple(float(g.options["lr"]) for g in self.groups)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All that holds for the whole run.

    Attributes:
        run_id: Random hexadecimal name of the run.
        created: ISO 8601 time, UTC.
        model: Qualified class name of the LightningModule.
        optimizer: Qualified class name of the optimizer, e.g. ``torch.optim.sgd.SGD``.
        parameters: Trained parameters in order: name, shape, dtype name.
        constant_digest: Checksum over the names and values of parameters that are not trained; 0 if there are none.
        precision: The Trainer's precision, e.g. ``"32-true"``, ``"bf16-mixed"``.
        keep: The policy by which states are stored, as the user wrote it: ``"every_step"``, ``"every(10)"``,
            ``"last_epochs(1)"``, ``"final"``.
        datasets: Per loader: qualified class name and length.
        replayable: Empty, or why the run cannot be replayed (it is recorded nevertheless).
        environment: Versions, device, thread count, instruction set, determinism flags.
        extra: More, also from later releases; readers ignore what they do not know.
    """

    run_id: str
    created: str
    model: str
    optimizer: str
    parameters: tuple[tuple[str, tuple[int, ...], str], ...]
    constant_digest: int = 0
    precision: str = "32-true"
    keep: str = "every_step"
    datasets: tuple[tuple[str, int], ...] = ()
    replayable: str = ""
    environment: Mapping[str, Json] = field(default_factory=dict)
    extra: Mapping[str, Json] = field(default_factory=dict)
