"""An unmodified LightningModule's ``training_step``, run outside the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.dtypes import cast_floats, dtype_name, tensors_made_in
from lightning_sgdinf.errors import ModelMismatchError, UnsupportedRunError
from lightning_sgdinf.kernels import (
    ATTENTION,
    DEVICE_LAYERS,
    LOSS_FORMULAS,
    VMAP_LAYERS,
    WEIGHT_NORM,
    HeldConstants,
    Interceptor,
    Phase,
    RenormalisedEmbedding,
    RunningStatistics,
    SparseRows,
    Twins,
    UnlinkedHook,
    layer_handlers,
    lookup_handlers,
    plain_checkpoints,
)
from lightning_sgdinf.log import Header, MicroBatch, Step
from lightning_sgdinf.parameters import ParameterVector
from lightning_sgdinf.query import call_step
from lightning_sgdinf.replay.attributes import naming_attributes
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.borrowed_module import containers_of, drop_graphs, empty_out, lasting_tensors, set_modes
from lightning_sgdinf.replay.example_weights import LossTap, tapped_output
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.module_buffers import ModuleBuffers
from lightning_sgdinf.replay.moment import Moment
from lightning_sgdinf.replay.moving_buffers import MovedBuffer, assigned_in_place, differentiable_buffers
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.replay.per_example_loss import PerExampleLoss, ask_module, divisor, expect_one_each
from lightning_sgdinf.replay.row_owners import RowRecorder
from lightning_sgdinf.replay.validation_hooks import validation_started
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True)
class Trace:
    """One pass through ``training_step`` with its graph.

    Attributes:
        loss: What the step's gradient is taken of: the returned loss over the accumulation divisor.
        statistics: Running statistics that the pass moved or read.
        taps: Names of the loss functions that were tapped.
        owners: Of the rows of each of these; empty where all weights are equal.
        moved: Moving buffers by name, where they were to be differentiated.
        functions: Names of torch's functions that it called, where they were looked at.
        structure: Of a pass with weights that was admitted; ``None`` of any other.
    """

    loss: Tensor
    statistics: RunningStatistics | None
    taps: tuple[str, ...]
    owners: tuple[Tensor, ...]
    moved: Mapping[str, MovedBuffer] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    structure: PassStructure | None = None


class TrainingStep:
    """An unmodified LightningModule's ``training_step``, borrowed.

    Attributes:
        module: The borrowed module.
        source: Gives recorded batches.
        host: What the Trainer did around a step.
        tap: Name of the sub-module at whose output weights enter; ``None`` if they enter at loss functions.
        dtype: Floating-point precision that takes the place of the recorded one; ``None`` for that.
        per_example_loss: Computes the loss of each example, where that is given or the module has such a method.
        vector: Names, shapes and order of the trained parameters.
        parameters: The module's own tensors of these, in that order.
        parts: Names of all its sub-modules.
        passes: What is known of its passes: their phase, and the buffers that they move.
        queries_together: True if several queries are differentiated in one vectorised pass. On a CPU a convolution of a
            single query fills the caches already.
    """

    def __init__(
        self,
        module: nn.Module,
        header: Header,
        source: BatchSource,
        host: Host,
        *,
        tap: str | None,
        dtype: torch.dtype | None,
        widened: bool = False,
        per_example_loss: PerExampleLoss | None = None,
    ) -> None:
        self.module = module
        self.source = source
        self.host = host
        self.tap = tap
        recorded = {name for _, _, name in header.parameters}
        self.dtype = None if dtype is not None and recorded == {dtype_name(dtype)} and not widened else dtype
        by_method = callable(getattr(module, "per_example_loss", None))
        self.per_example_loss = per_example_loss or (ask_module if by_method else None)
        self.vector = ParameterVector(
            tuple(n for n, _, _ in header.parameters), tuple(tuple(s) for _, s, _ in header.parameters)
        )
        named = dict(module.named_parameters())
        self.parameters: list[nn.Parameter] = [named[n] for n in self.vector.names]
        self.parts = tuple(name for name, _ in module.named_modules())
        self._buffers = ModuleBuffers(module, dtype)
        self.queries_together = host.device.type != "cpu" or not any(map(_convolves, module.modules()))
        self._modes: tuple[str, ...] | None = None
        self.passes = Passes(module)
        for name, shape, parameter in zip(self.vector.names, self.vector.shapes, self.parameters, strict=True):
            if tuple(parameter.shape) != shape:
                raise ModelMismatchError(
                    f"parameter {name!r}: the log has shape {shape}, this model {tuple(parameter.shape)}. Pass the "
                    "model configuration that was trained."
                )

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Put every sub-module in eval mode inside; the next step sets its own modes, whatever was done to them."""
        set_modes(self.module, self.parts)
        self._modes = None
        try:
            yield
        finally:
            self._modes = None

    def load(self, state: ModelState) -> None:
        """Give the module the parameters and buffers of a state."""
        with torch.no_grad():
            for name, parameter in zip(self.vector.names, self.parameters, strict=True):
                _expect_shape(name, state.params[name], parameter)
                parameter.copy_(state.params[name])
            self.load_buffers(state.buffers)

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Give the module its buffers.

        Raises:
            ModelMismatchError: If a recorded buffer is not there; names it.
        """
        self._buffers.load(buffers)

    def read_buffers(self) -> dict[str, Tensor]:
        """Return copies of the module's buffers as they are now."""
        return self._buffers.read()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Return the module's buffers as they are now, by name."""
        return self._buffers.present

    def put_back(self) -> None:
        """Undo what a pass of another process than 0 made of the buffers; not before its graph has served."""
        self._buffers.put_back()

    def batch(self, step: Step, micro: MicroBatch) -> Any:
        """Return the batch as ``training_step`` got it."""
        self.prepare(step, micro)
        batch = self.source.batch(micro, step=step.index)
        random_state.restore(micro.transferred_with)
        return self.bring(batch)

    def bring(self, batch: Any) -> Any:
        """Return a collated batch as ``training_step`` gets it: converted, moved to the device, through the hooks."""
        with self.host.stand_in.naming():
            batch = self.host.transfer(self.host.convert_input(batch))
        return cast_floats(batch, self.dtype) if self.dtype is not None else batch

    def prepare(self, step: Step, micro: MicroBatch | None = None) -> None:
        """Set train and eval modes, epoch, global step and batch index as they were in a pass of a step."""
        self.host.stand_in.at(Moment.of_pass(step, micro))
        if self.host.attributes is not None and micro is not None:
            self.host.attributes.restore(self.module, step.index, micro, self.parameters[0].dtype)
        if self._modes != step.eval_modules:
            set_modes(self.module, step.eval_modules)
            self._modes = step.eval_modules

    def run(
        self,
        step: Step,
        batch_idx: Any,
        batch: Any,
        weights: Tensor | None = None,
        *,
        tap: LossTap | RowRecorder | None = None,
        statistics: bool = False,
        stacked: bool = False,
        lossless: bool = False,
        reduced: bool = False,
    ) -> Trace:
        """Run a pass, once modes and random numbers are set, without looking at the loss.

        Args:
            step: The step it belongs to.
            batch_idx: As ``training_step`` gets it.
            batch: From `batch`.
            weights: Example weights ``[B]`` that enter the gradient.
            tap: Lets them enter where the loss is taken, or records its rows.
            statistics: Watch BatchNorm's running statistics, so that they can be differentiated.
            stacked: The pass is vectorised over many models, which are differentiated once.
            lossless: The pass returned no loss in training: its loss is zero, with a gradient of zeros.
            reduced: The mean of ``per_example_loss`` divides by the sum of the weights.

        Raises:
            UnsupportedRunError: It returns no loss, or one where it returned none in training.
        """
        twins = Twins()
        watch = RunningStatistics(self.module, twins) if statistics and self.buffers else None
        held = None
        if weights is not None and not stacked:
            counted = tap.handlers() if isinstance(tap, LossTap) and self.tap is None else {}
            held = HeldConstants(self.passes.phase, lambda: lasting_tensors(self.module), counted)
        moving = self.passes.moving if statistics else ()
        with ExitStack() as around:
            around.enter_context(self.passes.phase.taking_gradient())
            around.enter_context(torch.enable_grad())
            around.enter_context(self.host.step_context())
            around.enter_context(tensors_made_in(self.dtype))
            around.enter_context(naming_attributes(self.module, self.host.attributes, step.index))
            around.enter_context(self.host.stand_in.naming())
            assigned = nullcontext() if stacked else assigned_in_place(self.passes.places)
            handling = _handling(self, held, watch, twins, tap, stacked)
            with assigned, _moving(self.module, moving, held) as moved, handling as called:
                taps, owners = (), ()
                if lossless:
                    output = call_step(self.module.training_step, batch, batch_idx)  # type: ignore[arg-type]
                    loss = _nothing_of(output, self, step, weights)
                elif weights is not None and self.per_example_loss is not None:
                    losses = self.per_example_loss(self.module, batch, batch_idx)
                    expect_one_each(losses, len(weights), step)
                    loss = (losses * weights).sum() / divisor(weights, reduced)
                    taps, owners = ("per_example_loss",), (torch.arange(len(weights)),)
                else:
                    loss = _loss_of(call_step(self.module.training_step, batch, batch_idx), step, stacked)  # type: ignore[arg-type]
                    tapped = isinstance(tap, LossTap)
                    taps, owners = (tuple(tap.calls), tuple(tap.owners)) if tapped else ((), ())
            empty_out(self.passes.containers)
            if held is not None and held.used:
                drop_graphs(self.module)
            loss = loss / step.accumulation if step.accumulation != 1 else loss
        return Trace(loss, watch, taps, owners, moved, frozenset(f.__name__ for f in called))

    def gradient(self, loss: Tensor, *, create_graph: bool = False, noted: bool = False) -> list[Tensor | None]:
        """Return the gradient of a loss in the trained parameters; ``None`` where it does not depend on one. With
        ``noted``, the rows of sparse gradients are."""
        try:
            with self.passes.phase.taking_gradient(), self.passes.sparse_rows.noting(noted):
                grads = torch.autograd.grad(loss, self.parameters, create_graph=create_graph, allow_unused=True)
                return [self.passes.sparse_rows.dense(*each) for each in zip(self.parameters, grads, strict=True)]
        except UnlinkedHook as hook:
            raise UnsupportedRunError(
                f"a gradient hook on {hook} returns a tensor without a graph (by no_grad, detach or .data), so what it "
                "does cannot be differentiated. Compute in the hook with plain operations on the gradient it is given."
            ) from hook


class Passes:
    """Everything that passes of one module share.

    Attributes:
        phase: Tells training's own gradient from derivatives of it.
        sparse_rows: Rows that the sparse gradients of the step at hand have.
        moving: Names of buffers, other than BatchNorm's statistics, that passes move.
        places: Sub-modules and names of their buffers.
        containers: Of the module's attributes, with their content.
    """

    def __init__(self, module: nn.Module) -> None:
        self.phase = Phase()
        self.sparse_rows = SparseRows()
        self.moving: set[str] = set()
        self.places = [(part, key) for part in module.modules() for key in part._buffers]
        self.containers = [pair for part in module.modules() for pair in containers_of(part)]

    def versions(self) -> list[tuple[int, int]]:
        """Return what differs once a buffer has been written to."""
        present = [part._buffers.get(key) for part, key in self.places]
        return [(id(b), b._version) for b in present if b is not None]


@contextmanager
def validation_pass(objective: TrainingStep) -> Iterator[None]:
    """Be in the validation at the end of the run inside: in eval mode, at its stage, epoch and step."""
    stand_in = objective.host.stand_in
    attributes = objective.host.attributes
    if attributes is not None:
        objective.prepare(attributes.last, attributes.last.micro_batches[-1])
    with (
        objective.eval_mode(),
        stand_in.validating_at_end(),
        stand_in.naming(),
        validation_started(objective.module, objective.dtype),
    ):
        yield


@contextmanager
def _handling(
    objective: TrainingStep,
    held: HeldConstants | None,
    watch: RunningStatistics | None,
    twins: Twins,
    tap: LossTap | RowRecorder | None,
    stacked: bool,
) -> Iterator[set[Callable[..., Any]]]:
    """Handle torch's functions inside, and collect those that are called."""
    interceptor = None
    handlers: dict[Callable[..., Any], Any] = {}
    if held is not None:
        lookups = lookup_handlers(objective.passes.phase, objective.passes.sparse_rows)
        handlers = {**ATTENTION, **DEVICE_LAYERS, **WEIGHT_NORM, **LOSS_FORMULAS, **lookups}
        handlers |= {**layer_handlers(twins), **held.handlers()}
    elif stacked:
        handlers = {**ATTENTION, **WEIGHT_NORM, **VMAP_LAYERS}
    with ExitStack() as stack:
        parts = stack.enter_context(plain_checkpoints(objective.passes.versions))
        if tap is not None and objective.tap is None:
            handlers.update(tap.handlers())
        if tap is not None and objective.tap is not None:
            stack.enter_context(tapped_output(objective.module.get_submodule(objective.tap), tap))
        if watch is not None:
            handlers.update(watch.handlers())
        if handlers:
            interceptor = stack.enter_context(Interceptor(handlers, held))
        try:
            yield set() if interceptor is None else interceptor.called
            parts.repeat()
        except RenormalisedEmbedding:
            raise UnsupportedRunError(
                "an embedding has max_norm, with which the forward pass itself changes the weights, and that is not "
                "differentiated. Leave out max_norm, and bound the norm of what is looked up in the module's forward."
            ) from None


def _moving(module: nn.Module, names: Collection[str], held: HeldConstants | None) -> Any:
    return nullcontext({}) if held is None or not names else differentiable_buffers(module, names, held)


def _convolves(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.conv._ConvNd)


def _loss_of(output: Any, step: Step, stacked: bool) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor) or not (stacked or loss.requires_grad):
        raise UnsupportedRunError(
            f"step {step.index}: training_step returned {type(output).__name__} instead of a loss tensor with a "
            "gradient; return the loss, or a dict with 'loss'"
        )
    return loss


def _nothing_of(output: Any, objective: TrainingStep, step: Step, weights: Tensor | None) -> Tensor:
    """Return the loss of a pass without one."""
    if output is not None:
        raise UnsupportedRunError(
            f"step {step.index}: training_step returned a loss for a batch that it returned None for in training. "
            "Replay needs the same answer each time: let it depend on the batch alone"
        )
    nothing = sum((p.sum() * 0 for p in objective.parameters), start=torch.zeros((), device=objective.host.device))
    return nothing if weights is None else nothing + weights.sum() * 0


def _expect_shape(name: str, value: Tensor, parameter: Tensor) -> None:
    if value.shape != parameter.shape:
        raise UnsupportedRunError(
            f"parameter {name!r} changed its shape in training: it has {tuple(value.shape)} in one state and "
            f"{tuple(parameter.shape)} in another, and a replay needs one vector of parameters from end to end. Record "
            "what follows the change in a fit of its own"
        )
