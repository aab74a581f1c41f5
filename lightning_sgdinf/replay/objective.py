"""An unmodified LightningModule's ``training_step`` as a function of parameters and example weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.dtypes import cast_floats, tensors_made_in
from lightning_sgdinf.errors import ConfigurationError, ModelMismatchError, NonFiniteError, UnsupportedRunError
from lightning_sgdinf.kernels import ATTENTION, VMAP_LAYERS, Interceptor, RunningStatistics, Twins, layer_handlers
from lightning_sgdinf.log import Header, MicroBatch, Step
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.parameters import ParameterVector
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.borrowed_module import borrowed, containers_of, empty_out, set_modes
from lightning_sgdinf.replay.example_weights import LossTap, UnknownRows, tapped_output
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.row_matching import match_batch
from lightning_sgdinf.replay.row_owners import RowOrders, RowRecorder
from lightning_sgdinf.replay.untapped import Paths, expect_penalty, paths_beyond_taps
from lightning_sgdinf.state import ModelState

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Trace:
    """One pass through ``training_step`` with its graph.

    Attributes:
        loss: What the step's gradient is taken of: the returned loss over the accumulation divisor.
        statistics: Running statistics that the pass moved or read.
        taps: Names of the loss functions that were tapped.
    """

    loss: Tensor
    statistics: RunningStatistics | None
    taps: tuple[str, ...]


class Objective:
    """The training loss of a recorded step.

    Made by `open_objective`, and valid inside it.

    Attributes:
        module: The borrowed module.
        vector: Names, shapes and order of the trained parameters.
        parameters: The module's own tensors of these, in that order.
        parts: Names of all its sub-modules.
        orders: Which example owns which rows of the loss, as far as it is known.
        others: Batches to compare with, where a term of the loss must not depend on the data.
        queries_together: True if several queries are differentiated in one vectorised pass. On a CPU a convolution of a
            single query fills the caches already.
        tap: Name of the sub-module at whose output weights enter; ``None`` if they enter at loss functions.
        dtype: Floating-point precision that takes the place of the recorded one; ``None`` for that.
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
    ) -> None:
        self.module = module
        self.source = source
        self.host = host
        self.tap = tap
        self.orders = RowOrders()
        self.others: Sequence[tuple[Step, MicroBatch]] = ()
        self._known_paths: set[Paths] = set()
        self.dtype = dtype
        self.vector = ParameterVector(
            tuple(n for n, _, _ in header.parameters), tuple(tuple(s) for _, s, _ in header.parameters)
        )
        named = dict(module.named_parameters())
        self.parameters: list[nn.Parameter] = [named[n] for n in self.vector.names]
        self.parts = tuple(name for name, _ in module.named_modules())
        self.buffers: dict[str, Tensor] = dict(module.named_buffers())
        self.queries_together = host.device.type != "cpu" or not any(map(_convolves, module.modules()))
        self._modes: tuple[str, ...] | None = None
        self._kept: dict[str, Tensor] = {}
        self._containers = [pair for part in module.modules() for pair in containers_of(part)]
        for name, shape, parameter in zip(self.vector.names, self.vector.shapes, self.parameters, strict=True):
            if tuple(parameter.shape) != shape:
                raise ModelMismatchError(
                    f"parameter {name!r}: the log has shape {shape}, this model {tuple(parameter.shape)}. Pass the "
                    "model configuration that was trained."
                )

    @property
    def weighs_by_method(self) -> bool:
        """Return true if the module computes its per-example losses itself."""
        return callable(getattr(self.module, "per_example_loss", None))

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
                parameter.copy_(state.params[name])
            self.load_buffers(state.buffers)

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Give the module its buffers.

        Raises:
            ModelMismatchError: If a recorded buffer is not there; names it.
        """
        self._kept = {n: v for n, v in self._kept.items() if n not in buffers}
        for name, value in buffers.items():
            if name not in self.buffers:
                raise ModelMismatchError(
                    f"the log has a buffer {name!r} that this model lacks; pass the model that was trained"
                )
            self.buffers[name].copy_(value)

    def read_buffers(self) -> dict[str, Tensor]:
        """Return copies of the module's buffers as they are now."""
        self._put_back()
        return {n: b.detach().clone() for n, b in self.buffers.items()}

    def _put_back(self) -> None:
        """Undo what a pass of another process than 0 made of the buffers; not before its graph has served."""
        kept, self._kept = self._kept, {}
        for name, value in kept.items():
            self.buffers[name].copy_(value)

    def batch(self, step: Step, micro: MicroBatch) -> Any:
        """Return the batch as ``training_step`` got it."""
        batch = self.source.batch(micro, step=step.index)
        random_state.restore(micro.transferred_with)
        return self.bring(batch)

    def bring(self, batch: Any) -> Any:
        """Return a collated batch as ``training_step`` gets it: converted, moved to the device, through the hooks."""
        batch = self.host.transfer(self.host.convert_input(batch))
        return cast_floats(batch, self.dtype) if self.dtype is not None else batch

    def trace(
        self,
        step: Step,
        micro: MicroBatch,
        batch: Any,
        weights: Tensor | None = None,
        *,
        statistics: bool = False,
        uniform: bool = False,
    ) -> Trace:
        """Run ``training_step`` at the loaded state.

        What another training process than 0 made of the buffers was lost: they are put back when somebody asks next.

        Args:
            step: The step it belongs to.
            micro: The pass of it.
            batch: From `batch`.
            weights: Example weights ``[B]`` that enter the gradient; ``None`` leaves the loss alone.
            statistics: Watch BatchNorm's running statistics, so that they can be differentiated.
            uniform: All weights are equal, so that it does not matter whose rows are whose.

        Raises:
            UnsupportedRunError: If ``training_step`` returned no loss.
            UntappedLossError: If a term of the loss depends on the data and not on example weights.
            NonFiniteError: If the loss is NaN or infinite; names the step.
        """
        self.prepare(step)
        self.host.stand_in.global_rank = micro.rank
        self._put_back()
        if micro.rank:
            self._kept = self.read_buffers()
        before = self.read_buffers() if weights is not None else {}

        def take(owners: Sequence[Tensor] | None) -> Trace:
            return self.forward(
                step, micro.batch_idx, batch, weights, statistics=statistics, owners=owners, uniform=uniform
            )

        trace = self.owned(step, micro, take, again=lambda: self.load_buffers(before))
        if micro.rank and trace.statistics is not None:
            trace.statistics.updates.clear()
        if not torch.isfinite(trace.loss.detach()).all():
            raise NonFiniteError(
                f"the training loss of step {step.index} is {trace.loss.item()}; replay stops here. Scores need a "
                "finite run."
            )
        if weights is not None and not uniform and self.has_new_paths(trace.loss):
            self.load_buffers(before)
            expect_penalty(self, step, micro, trace.taps)
            return self.trace(step, micro, batch, weights, statistics=statistics)
        return trace

    @property
    def has_unweighted_terms(self) -> bool:
        """Whether a pass so far had paths to the parameters that carry no weights."""
        return any(paths.leaves for paths in self._known_paths)

    def has_new_paths(self, loss: Tensor) -> bool:
        """Return true, once, if a loss has terms without weights, reached by paths that were not seen before."""
        if self.weighs_by_method:
            return False
        paths = paths_beyond_taps(loss)
        known = not paths.leaves or paths in self._known_paths
        self._known_paths.add(paths)
        return not known

    def owned(
        self,
        step: Step,
        micro: MicroBatch,
        take: Callable[[Sequence[Tensor] | None], Result],
        *,
        again: Callable[[], None],
    ) -> Result:
        """Take a pass with example weights; once more with matched owners, if its rows were not known.

        Args:
            step: The step it belongs to.
            micro: The pass of it.
            take: Takes the pass, given the owners of its rows.
            again: Undoes what a pass that was broken off did.
        """
        random_state.restore(micro.stepped_with)
        try:
            return take(None)
        except UnknownRows:
            again()
            owners = match_batch(self, step, micro)
            self.prepare(step)
            random_state.restore(micro.stepped_with)
            return take(owners)

    def prepare(self, step: Step) -> None:
        """Set train and eval modes, epoch and global step as they were in a step."""
        self.host.stand_in.current_epoch, self.host.stand_in.global_step = step.epoch, step.global_step
        if self._modes != step.eval_modules:
            set_modes(self.module, step.eval_modules)
            self._modes = step.eval_modules

    def forward(
        self,
        step: Step,
        batch_idx: Any,
        batch: Any,
        weights: Tensor | None = None,
        *,
        statistics: bool = False,
        stacked: bool = False,
        owners: Sequence[Tensor] | None = None,
        record: RowRecorder | None = None,
        uniform: bool = False,
    ) -> Trace:
        """Run a pass as `trace` does once modes and random numbers are set, without looking at the loss.

        With ``stacked`` it is called by ``torch.func.vmap`` for many models at once, which are differentiated once.
        ``owners`` are those of each loss's rows, where they were matched for this batch; ``record`` keeps the rows.
        """
        twins = Twins()
        watch = RunningStatistics(self.module, twins) if statistics and self.buffers else None
        with torch.enable_grad(), self.host.step_context(), tensors_made_in(self.dtype):
            tap = record or self._tap_for(weights, owners, stacked, uniform)
            with self._handling(weights is not None, watch, twins, tap, stacked):
                if weights is not None and self.weighs_by_method:
                    losses = self.module.per_example_loss(batch, batch_idx)  # type: ignore[operator]
                    loss = (losses * weights).sum() / len(weights)
                    taps = ("per_example_loss",)
                else:
                    loss = _loss_of(self.module.training_step(batch, batch_idx), step, stacked)  # type: ignore[operator]
                    taps = tuple(tap.calls) if isinstance(tap, LossTap) else ()
            empty_out(self._containers)
            loss = loss / step.accumulation if step.accumulation != 1 else loss
        return Trace(loss, watch, taps)

    def _tap_for(
        self, weights: Tensor | None, owners: Sequence[Tensor] | None, stacked: bool, uniform: bool
    ) -> LossTap | None:
        if weights is None or self.weighs_by_method:
            return None
        return LossTap(weights, None if uniform else self.orders, owners, stacked=stacked)

    @contextmanager
    def _handling(
        self,
        weighted: bool,
        watch: RunningStatistics | None,
        twins: Twins,
        tap: LossTap | RowRecorder | None,
        stacked: bool,
    ) -> Iterator[None]:
        handlers: dict[Callable[..., Any], Any] = {}
        if weighted:
            handlers = {**ATTENTION, **(VMAP_LAYERS if stacked else layer_handlers(twins))}
        with ExitStack() as stack:
            if tap is not None and self.tap is None:
                handlers.update(tap.handlers())
            if tap is not None and self.tap is not None:
                stack.enter_context(tapped_output(self.module.get_submodule(self.tap), tap))
            if watch is not None:
                handlers.update(watch.handlers())
            if handlers:
                stack.enter_context(Interceptor(handlers))
            yield

    def gradient(self, loss: Tensor, *, create_graph: bool = False) -> list[Tensor | None]:
        """Return the gradient of a loss in the trained parameters; ``None`` where it does not depend on one."""
        return list(torch.autograd.grad(loss, self.parameters, create_graph=create_graph, allow_unused=True))


@contextmanager
def open_objective(
    module: nn.Module,
    header: Header,
    source: BatchSource,
    host: Host,
    *,
    tap: str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Objective]:
    """Borrow a module and see it as an `Objective`; on leaving, it is as it was, and so are the random generators.

    Args:
        module: The user's module.
        header: The log's header.
        source: Gives the recorded batches.
        host: What the Trainer did around a step.
        tap: Name of a sub-module whose output is tapped in place of loss functions.
        dtype: Compute in another floating-point precision than recorded (for checks).

    Raises:
        ConfigurationError: If there is no sub-module called ``tap``; lists what there is.
        ModelMismatchError: If parameters differ from the recorded ones.
    """
    parts = [n for n, _ in module.named_modules() if n]
    if tap is not None and tap not in parts:
        raise ConfigurationError(f"tap={tap!r}: the model has no such sub-module; it has {parts}")
    trained: Sequence[str] = [n for n, _, _ in header.parameters]
    _check_constants(module, trained, header)
    wanted = dtype or _common_dtype(header)
    with (
        random_state.preserved(),
        borrowed(module, trained=trained, device=host.device, dtype=wanted, stand_in=host.stand_in),
    ):
        yield Objective(module, header, source, host, tap=tap, dtype=dtype)


def _check_constants(module: nn.Module, trained: Sequence[str], header: Header) -> None:
    """Compare parameters that were not trained with their checksum, which is all that the log has of them."""
    constants = {n: p for n, p in module.named_parameters() if n not in set(trained)}
    if header.constant_digest and batch_digest(constants) != header.constant_digest:
        raise ModelMismatchError(
            f"the parameters that were not trained ({', '.join(list(constants)[:3])} ...) have other values than in "
            "the recorded run; pass the model with the same frozen weights, e.g. the very module that was trained"
        )


def _common_dtype(header: Header) -> torch.dtype | None:
    """Return the dtype all trained parameters were recorded in, so that a fresh model of another default fits."""
    kinds = {d for _, _, d in header.parameters}
    return getattr(torch, kinds.pop()) if len(kinds) == 1 else None


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
