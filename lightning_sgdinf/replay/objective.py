"""An unmodified LightningModule's ``training_step`` as a function of parameters and example weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.batch_structure import map_tensors
from lightning_sgdinf.errors import (
    ConfigurationError,
    ModelMismatchError,
    NonFiniteError,
    UnsupportedRunError,
    UntappedLossError,
)
from lightning_sgdinf.kernels import RunningStatistics
from lightning_sgdinf.log import Header, MicroBatch, Step, constants_of, recorded_constants, uncompiled
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.borrowed_module import borrowed
from lightning_sgdinf.replay.example_weights import LossTap, UnknownDivisor, UnknownRows, Values, expect_zero_or_one
from lightning_sgdinf.replay.gradient_hooks import hooks_of_training
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.moving_buffers import moved_by_pass
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.replay.per_example_loss import PerExampleLoss
from lightning_sgdinf.replay.row_matching import expect_owners, match_batch
from lightning_sgdinf.replay.row_owners import CONFIRMED, LossRows, RowOrders, RowOwners, checked_owners
from lightning_sgdinf.replay.structure_audits import LossAudits
from lightning_sgdinf.replay.training_step import Trace, TrainingStep
from lightning_sgdinf.replay.untapped import WAYS_OUT, expect_twice_differentiable
from lightning_sgdinf.replay.vanishing import VanishingGradient

Result = TypeVar("Result")


class Objective(TrainingStep):
    """The training loss of a recorded step as a function of parameters and example weights.

    Made by `open_objective`, and valid inside it.

    Args:
        rows: Says whose the rows of a loss are; ``None`` to find it out.
        args: Of `TrainingStep`.
        more: Of `TrainingStep`.

    Attributes:
        orders: The example that owns each row of the loss, as far as it is known.
        audits: Outcomes for the structures of passes seen so far.
        others: Batches to compare with, where a term of the loss must not depend on the data.
        vanishing: Elements of the gradient that are zero but for rounding, once looked for.
    """

    def __init__(self, *args: Any, rows: RowOwners | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.orders = RowOrders()
        self.audits = LossAudits()
        self.others: Sequence[tuple[Step, MicroBatch]] = ()
        self.rows = rows
        self.vanishing = VanishingGradient()

    def known_from(self, other: Objective) -> None:
        """Take over what was learnt of the loss by another objective of the run: it does not depend on the precision.

        Args:
            other: It.
        """
        self.orders, self.audits, self.others = other.orders.copy(), other.audits.copy(), other.others

    def trace(
        self,
        step: Step,
        micro: MicroBatch,
        batch: Any,
        weights: Tensor | None = None,
        *,
        statistics: bool = False,
        reduced: bool = False,
    ) -> Trace:
        """Run ``training_step`` at the loaded state.

        What another training process than 0 made of the buffers was lost: they are put back when somebody asks next.

        Args:
            step: The step it belongs to.
            micro: The pass of it.
            batch: From `batch`.
            weights: Example weights ``[B]`` that enter the gradient; ``None`` leaves the loss alone.
            statistics: Watch BatchNorm's running statistics, so that they can be differentiated.
            reduced: Let losses divide by what is left.

        Raises:
            UnsupportedRunError: If ``training_step`` returned no loss; with ``reduced``, if what a loss divides by is
                not known; with weights to differentiate in, if an operation is differentiated once.
            UntappedLossError: If a term of the loss depends on the data and not on example weights.
            NonFiniteError: If the loss is NaN or infinite; names the step.
        """
        if weights is not None and weights.requires_grad:
            expect_zero_or_one(weights)
        self.prepare(step, micro)
        self.put_back()
        before = self.read_buffers() if weights is not None else {}

        def take(owners: Sequence[Tensor] | None) -> Trace:
            if micro.rank:
                self._buffers.keep()
            # A step may change its batch in place, and may have to be taken twice.
            own = batch if weights is None else map_tensors(batch, torch.clone)
            how: dict[str, Any] = {"ask": self.asker(step, micro, batch), "lossless": micro.without_loss}
            how |= {"statistics": statistics, "reduced": reduced, "owners": owners}
            return self.forward(step, micro.batch_idx, own, weights, **how)

        def taken() -> Trace:
            if weights is not None:
                return self.owned(step, micro, take, again=again)
            random_state.restore(micro.stepped_with)
            return take(None)

        def again() -> None:
            self.load_buffers(before)

        trace = taken()
        if trace.statistics is not None and (moving := self._new_moving(before, trace.statistics)):
            self.passes.moving |= moving
            again()
            trace = taken()
        if not torch.isfinite(trace.loss.detach()).all():
            raise NonFiniteError(
                f"the training loss of step {step.index} is {trace.loss.item()}; replay stops here. Scores need a "
                "finite run."
            )
        if weights is not None and not micro.without_loss:
            structure = PassStructure.of(trace.taps, trace.owners, trace.loss, len(weights), trace.functions)
            if self.admit(step, micro, structure, again=again):
                trace = taken()
            if weights.requires_grad:
                expect_twice_differentiable(trace.loss, step, micro)
            trace = replace(trace, structure=structure)
        if micro.rank and trace.statistics is not None:
            trace.statistics.updates.clear()
            for buffer in trace.moved.values():
                buffer.after = None
        return trace

    def admit(self, step: Step, micro: MicroBatch, structure: PassStructure, *, again: Callable[[], None]) -> bool:
        """Audit a pass with weights if that is due, as where its structure is new; return true if it was, and has to be
        taken again.

        Args:
            step: The step it belongs to.
            micro: The pass of it.
            structure: What it is like.
            again: Undoes what it did.

        Raises:
            UntappedLossError: A term of its loss depends on the data and does not follow the weights.
        """
        if not self.audits.is_due(structure):
            return False
        again()
        self.audits.admit(self, step, micro, structure, self.others, partial(self._weighted_gradient, step, micro))
        return True

    def _weighted_gradient(self, step: Step, micro: MicroBatch, weights: Tensor, values: Values) -> Tensor:
        """Return the gradient of a pass with example weights that enter the values of some calls; see `Weighted`."""
        batch, buffers, like = self.batch(step, micro), self.read_buffers(), self.parameters[0]
        own = weights.to(like.device, like.dtype)

        def take(owners: Sequence[Tensor] | None) -> Tensor:
            tap = LossTap(own, self.orders, owners, ask=self.asker(step, micro, batch), values=values)
            return self.run(step, micro.batch_idx, map_tensors(batch, torch.clone), own, tap=tap).loss

        with random_state.preserved():
            self.prepare(step, micro)
            grads = self.gradient(self.owned(step, micro, take, again=partial(self.load_buffers, buffers)))
            self.load_buffers(buffers)
        return self.vector.join_gradients(grads, self.parameters).detach().double()

    def forward(
        self,
        step: Step,
        batch_idx: Any,
        batch: Any,
        weights: Tensor | None = None,
        *,
        statistics: bool = False,
        stacked: bool = False,
        reduced: bool = False,
        owners: Sequence[Tensor] | None = None,
        lossless: bool = False,
        ask: Callable[[LossRows], Tensor | None] | None = None,
    ) -> Trace:
        """Run a pass with weights as `TrainingStep.run` does.

        Args:
            step: The step it belongs to.
            batch_idx: As ``training_step`` gets it.
            batch: From `batch`.
            weights: Example weights ``[B]`` that enter the gradient.
            statistics: As for `TrainingStep.run`.
            stacked: As for `TrainingStep.run`.
            reduced: Let losses divide by what is left.
            owners: Of each loss's rows, where they were matched for this batch; see `owned`.
            lossless: As for `TrainingStep.run`.
            ask: Returns the owners of a call's rows as the user says them.
        """
        tap = None
        if weights is not None and self.per_example_loss is None:
            how: dict[str, Any] = {"reduced": reduced, "stacked": stacked, "values": self.audits.values}
            tap = LossTap(weights, self.orders, owners, ask=ask, **how)
        return self.run(
            step,
            batch_idx,
            batch,
            weights,
            tap=tap,
            statistics=statistics,
            stacked=stacked,
            lossless=lossless,
            reduced=reduced,
        )

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

        Raises:
            UntappedLossError: Its rows are others than in eval mode, or nobody's.
            UnsupportedRunError: It is not known what a loss divides by, and that is asked for.
        """
        self._verify_given(step, micro)
        random_state.restore(micro.stepped_with)
        try:
            return take(None)
        except UnknownDivisor as unknown:
            raise unknown_divisor(unknown, step) from None
        except UnknownRows:
            again()
            owners = match_batch(self, step, micro, self.orders, self.others)
            self.prepare(step, micro)
            random_state.restore(micro.stepped_with)
        try:
            return take(owners)
        except UnknownDivisor as unknown:
            raise unknown_divisor(unknown, step) from None
        except UnknownRows:
            raise UntappedLossError(
                f"step {step.index}: the loss has other rows than in eval mode, so it is not known whose they are: it "
                f"chooses them by what it predicts or at random. {WAYS_OUT}"
            ) from None

    def _new_moving(self, before: Mapping[str, Tensor], statistics: RunningStatistics) -> set[str]:
        """Return the names of buffers that a pass moved, where that was not known."""
        known = self.passes.moving | {update.name for update in statistics.updates}
        return moved_by_pass(before, self.buffers, known)

    def _verify_given(self, step: Step, micro: MicroBatch) -> None:
        """Compare the user's word on whose the rows are with the truth, in the first passes."""
        if self.orders.verified >= CONFIRMED:
            return
        ask = self.asker(step, micro, self.batch(step, micro)) if self.rows is not None else None
        if ask is not None:
            self.orders.verified += 1
            expect_owners(self, step, micro, ask, self.orders, self.others)
            self.prepare(step, micro)

    def asker(self, step: Step, micro: MicroBatch, batch: Any) -> Callable[[LossRows], Tensor | None] | None:
        """Return what says whose the rows of a batch's losses are, if the user does; see `RowOwners`.

        Args:
            step: The step it belongs to.
            micro: The pass of it.
            batch: As ``training_step`` gets it.
        """
        rows, count = self.rows, len(micro.example_ids)
        if rows is None or self.per_example_loss is not None:
            return None

        def ask(loss: LossRows) -> Tensor | None:
            given = rows(batch, loss)
            return None if given is None else checked_owners(given, loss, count, step.index)

        return ask


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled sub-modules as they were before: a compiled backward pass cannot be differentiated again."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # new in torch 2.6
    return nullcontext() if set_stance is None else set_stance("force_eager")


def unknown_divisor(unknown: UnknownDivisor, step: Step) -> UnsupportedRunError:
    """Return the error for a loss of which it is not known what it divides by."""
    return UnsupportedRunError(
        f"step {step.index}: divisor='reduced' lets losses divide by what is left of a batch, but it is not known what "
        f"the step divides by: {unknown} is not called with reduction='mean' (a sum, or losses of rows that the step "
        "reduces by itself). Give the loss function the reduction; or the runner a function of module, batch and index "
        "that returns the loss of each example, InfluenceRunner(per_example_loss=...), whose mean is over examples; or "
        "keep the divisor (divisor='kept')."
    )


@contextmanager
def open_objective(
    module: nn.Module,
    header: Header,
    source: BatchSource,
    host: Host,
    *,
    tap: str | None = None,
    dtype: torch.dtype | None = None,
    widened: bool = False,
    per_example_loss: PerExampleLoss | None = None,
    rows: RowOwners | None = None,
) -> Iterator[Objective]:
    """Borrow a module and see it as an `Objective`; on leaving, it is as it was, and so are the random generators.

    Args:
        module: The user's module.
        header: The log's header.
        source: Gives the recorded batches.
        host: What the Trainer did around a step.
        tap: Name of a sub-module whose output is tapped in place of loss functions.
        dtype: Compute in another floating-point precision than recorded (for checks).
        widened: Let what asks for float32 have ``dtype``, even if that is the recorded one.
        per_example_loss: Computes the loss of each example, for losses written by hand.
        rows: Says whose the rows of a loss are.

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
        eagerly(),
        borrowed(module, trained=trained, device=host.device, dtype=wanted, stand_in=host.stand_in),
        ExitStack() as lent,
    ):
        if host.attributes is not None:
            lent.enter_context(host.attributes.lent(module))
        host.stand_in.attach(module, dict(module.named_parameters()))
        arguments: dict[str, Any] = {"tap": tap, "dtype": dtype, "widened": widened}
        objective = Objective(module, header, source, host, rows=rows, per_example_loss=per_example_loss, **arguments)
        with hooks_of_training(module, objective.passes.phase):
            yield objective


def _check_constants(module: nn.Module, trained: Sequence[str], header: Header) -> None:
    """Compare what was not trained with the digests that the log has of it.

    Raises:
        ModelMismatchError: It has other values; names the tensors.
    """
    recorded = recorded_constants(header.extra)
    present = {uncompiled(name): value for name, value in constants_of(module, set(trained)).items()}
    if recorded is None:  # a log of an earlier release
        parameters = {n: p for n, p in module.named_parameters() if uncompiled(n) in present}
        digests = {0, batch_digest(parameters), batch_digest({uncompiled(n): p for n, p in parameters.items()})}
        differing = list(present) if header.constant_digest not in digests else []
    else:
        known = {uncompiled(c.name): c for c in recorded}
        differing = [n for n, c in known.items() if n in present and not c.is_that_of(present[n])]
    if differing:
        raise ModelMismatchError(
            f"{', '.join(differing[:3])}{' ...' if len(differing) > 3 else ''} were not trained and are not in the "
            "log, and have other values in this model than in the recorded run. Pass the model with the same frozen "
            "weights, e.g. the very module that was trained"
        )


def _common_dtype(header: Header) -> torch.dtype | None:
    """Return the dtype all trained parameters were recorded in, so that a fresh model of another default fits."""
    kinds = {d for _, _, d in header.parameters}
    return getattr(torch, kinds.pop()) if len(kinds) == 1 else None
