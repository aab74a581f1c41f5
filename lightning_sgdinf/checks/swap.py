r"""The swap check: a road to the gradients of examples that does not go through their weights.

Some examples :math:`P` of a recorded step's batch are exchanged for others of the training data. The plain gradient of
the user's ``training_step``, before and after, must change by what example weights say of the examples that went and
of those that came, with all else at weight 0:

.. math:: g(S') - g(S) = \sum_{j \in P} \nabla l'_j - \sum_{j \in P} \nabla l_j .

A term that no weight reaches, a row that is given to the wrong example, and examples that see each other all break
this. Where the exchange changes what the loss divides by (class weights, labelled rows), the examples that stay are
scaled, each call of a loss function by a number of its own; those numbers are fitted.

BatchNorm's statistics are held (its layers in eval mode, all else as in training), since in training they couple the
examples of a batch, which is no part of an example's weight; with held statistics the identity is exact. Dropout draws
by an example's place in the batch, so that it is the same before and after. What else depends on the other examples of
a batch in training, but not in eval mode, is judged in eval mode, and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_sgdinf import random_state
from lightning_sgdinf.batch_structure import tensors_in
from lightning_sgdinf.certificate import Check, rounding_in
from lightning_sgdinf.checks.exchange import Exchange, SwapOutcome, compare_exchange, using_source
from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.log import Draw, MicroBatch, Step
from lightning_sgdinf.replay import Objective, OpenedRun
from lightning_sgdinf.replay.pass_structure import PassStructure
from lightning_sgdinf.replay.untapped import WAYS_OUT
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth import clock

TOLERANCE = {"float64": 1e-6, "float32": 5e-3}
COARSE = 1e-1
"""Allowed in lower and in mixed precision."""
EXCHANGED = 8
"""Examples of a batch that are exchanged at most; a third of a smaller batch, since a half could go in pairs."""
CANDIDATES = 3
"""Other batches that are tried, where one says nothing or makes the loss take other rows."""
SPREAD = 50
"""Steps between two swaps in passes of a kind that was judged before; three of them at most."""


@dataclass(slots=True)
class SwapComparison:
    """Swaps examples along a walk: in a pass of each kind, and in some more.

    Attributes:
        run: The recorded run.
        steps: Steps that agreed.
        examples: How many examples were exchanged in them.
        largest: Disagreement so far.
        held: True if BatchNorm's statistics were held.
        in_eval_mode: True if some passes were judged in eval mode alone.
        cost: Time by `clock` that it took.
    """

    run: OpenedRun
    steps: list[int] = field(default_factory=list)
    examples: int = 0
    largest: float = 0.0
    held: bool = False
    in_eval_mode: bool = False
    cost: float = 0.0
    _kinds: set[tuple[PassStructure, frozenset[str], int]] = field(default_factory=set)
    _extra: int = 0
    _unjudged: dict[str, int] = field(default_factory=dict)

    def see(self, step: Step, before: ModelState, structures: Sequence[PassStructure]) -> None:
        """Judge the passes of a step that are of a new kind.

        Args:
            step: The step.
            before: The state it was taken from.
            structures: Of its passes, in the order of its micro-batches.

        Raises:
            UntappedLossError: The gradient changes by something else than the weights say; names step and examples.
        """
        micros = [micro for micro in step.micro_batches if not micro.without_loss]
        if len(structures) != len(micros):
            return  # by a compiled kernel, which was compiled for a kind of pass that was judged
        for micro, structure in zip(micros, structures, strict=True):
            kind = (structure, structure.functions, len(micro.example_ids))
            spread = self._extra < 3 and self.steps and self.steps[-1] - step.index >= SPREAD
            if kind in self._kinds and not spread:
                continue
            self._extra += kind in self._kinds
            self._kinds.add(kind)
            objective, began = self.run.objective, clock(self.run.host.device)
            if name := _scaled_by_frequency(objective):
                self._leave(f"the embedding {name} divides gradients by how often the batch has an index", step)
                continue
            audited = objective.audits.known.get(structure)
            if audited is not None and audited.coupled:
                self._leave("what an example counts for depends on the losses of the others", step)
                continue
            objective.load(before)
            with _left_as_it_is(objective):
                self._judge(step, micro, structure)
            self.cost += clock(self.run.host.device) - began

    def look_at(self, indices: Iterable[int]) -> None:
        """Judge the passes of some steps at the final model, for results that take no step with weights.

        Args:
            indices: Of the steps.

        Raises:
            UntappedLossError: As `see`.
        """
        run, objective = self.run, self.run.objective
        for index in sorted(set(indices), reverse=True):
            step = run.log.step(index)
            objective.load(run.final)
            with _left_as_it_is(objective):
                structures = [_structure(objective, step, micro) for micro in step.micro_batches]
            self.see(step, run.final, [s for s in structures if s is not None])

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Return sentences on passes where the comparison says nothing."""
        return tuple(
            f"The swap check cannot judge batches like that of step {step}: {why}."
            for why, step in self._unjudged.items()
        )

    def value(self) -> Check | None:
        """Return the result; ``None`` if no pass could be judged."""
        if not self.steps:
            return None
        precision = self.run.precision
        shown = ", ".join(map(str, self.steps[:6])) + (" ..." if len(self.steps) > 6 else "")
        kinds = "the one kind" if len(self._kinds) == 1 else f"{len(self._kinds)} kinds"
        remarks = ["BatchNorm's statistics were held for it: they couple the examples of a batch."] * self.held
        remarks += ["Some batches were compared in eval mode alone."] * self.in_eval_mode
        return Check(
            name="swap check",
            compared="the change of a batch's plain gradient, without any weights, when examples are exchanged for "
            "others against what the weights of these examples say",
            where=f"{self.examples} examples exchanged in steps {shown}, which have {kinds} of batch seen in the run",
            precision=precision,
            deviation=self.largest,
            unit="of what the exchanged examples add to the gradient",
            tolerance=TOLERANCE.get(precision, COARSE),
            rounding=rounding_in(precision),
            remark=" ".join(remarks),
        )

    def _judge(self, step: Step, micro: MicroBatch, structure: PassStructure) -> None:
        objective, allowed = self.run.objective, TOLERANCE.get(self.run.precision, COARSE)
        norms = {n for n, m in objective.module.named_modules() if isinstance(m, _BatchNorm) and n}
        holding = norms - set(step.eval_modules)
        held = replace(step, eval_modules=(*step.eval_modules, *sorted(holding)))
        quiet = replace(step, eval_modules=objective.parts)
        outcomes: list[tuple[Exchange, SwapOutcome]] = []
        for mode in (held, quiet):
            nothing = None
            for exchange in self._exchanges(step, micro):
                outcome = compare_exchange(objective, mode, micro, exchange, structure)
                if outcome is None or (mode is held and not exchange.same_shapes and outcome.deviation > allowed):
                    continue  # of other shapes random draws may be others
                if not outcome.informative and outcome.deviation <= allowed:
                    nothing = exchange, outcome
                    continue
                outcomes.append((exchange, outcome))
                if outcome.deviation <= allowed:
                    self._agreed(step, exchange, outcome, bool(holding), mode is quiet)
                    differed = [o for _, o in outcomes if o.deviation > allowed and not o.other_rows]
                    if mode is quiet and differed:
                        self._expect_coupling(step, structure, differed[0].deviation, exchange, micro)
                    return
                if not outcome.other_rows:
                    break
            else:
                if nothing is not None:
                    self._agreed(step, *nothing, bool(holding), mode is quiet)
                    return
        if not outcomes:
            self._leave("no other batch could be made of its examples and others", step)
        elif objective.orders.coupled:
            self._leave("the loss of an example depends on the other examples of its batch", step)
        elif outcomes[-1][1].other_rows:
            self._leave("which rows the loss takes depends on the other examples of the batch", step)
        else:
            exchange, outcome = outcomes[-1]
            raise _refusal(step, micro, exchange, outcome.deviation, structure, allowed, self.run.precision)

    def _agreed(self, step: Step, exchange: Exchange, outcome: SwapOutcome, held: bool, in_eval_mode: bool) -> None:
        self.steps.append(step.index)
        self.examples += len(exchange.places)
        self.largest = max(self.largest, outcome.deviation)
        self.held |= held
        self.in_eval_mode |= in_eval_mode

    def _expect_coupling(
        self, step: Step, structure: PassStructure, deviation: float, exchange: Exchange, micro: MicroBatch
    ) -> None:
        """Say that examples are coupled in training alone; a term without weights would look the same."""
        if structure.paths.leaves:
            allowed = TOLERANCE.get(self.run.precision, COARSE)
            raise _refusal(step, micro, exchange, deviation, structure, allowed, self.run.precision)
        self._leave(
            "in training mode examples see each other in the network, or their random draws depend on them (mixed "
            "inputs, statistics of the batch); in eval mode it agrees",
            step,
        )

    def _leave(self, why: str, step: Step) -> None:
        self._unjudged.setdefault(why, step.index)

    def _exchanges(self, step: Step, micro: MicroBatch) -> Iterator[Exchange]:
        """Yield batches in which some examples are others, those of the same shapes first."""
        objective, count = self.run.objective, len(micro.example_ids)
        generator = torch.Generator().manual_seed(step.index)
        number = max(1, min(EXCHANGED, count // 3))
        shapes = _shapes(objective.batch(step, micro))
        of_other_shapes = []
        for _ in range(CANDIDATES):
            places = torch.randperm(count, generator=generator)[:number].tolist()
            others = dict(zip(places, self._others(micro, number, generator), strict=False))
            source, changed = objective.source.exchanged(micro, others)
            try:
                with using_source(objective, source):
                    batch = objective.batch(step, changed)
            except Exception:  # whatever a collate function of the user's does with such a batch
                continue
            same_shapes = _shapes(batch) == shapes
            exchange = Exchange(tuple(others), source, changed, batch, same_shapes)
            if same_shapes:
                yield exchange
            else:
                of_other_shapes.append(exchange)
        yield from of_other_shapes

    def _others(self, micro: MicroBatch, number: int, generator: torch.Generator) -> list[tuple[Draw, int]]:
        """Return where other examples were drawn, all in one step; those of the batch itself if there are no others."""
        log, own = self.run.log, set(micro.example_ids.tolist())
        draw, places = micro.draws[0], torch.randperm(len(micro.example_ids), generator=generator).tolist()
        for _ in range(CANDIDATES):
            micros = log.step(int(torch.randint(len(log), (), generator=generator))).micro_batches
            drawn = micros[int(torch.randint(len(micros), (), generator=generator))].draws[0]
            order = torch.randperm(len(drawn.example_ids), generator=generator).tolist()
            new = [place for place in order if int(drawn.example_ids[place]) not in own]
            if new and drawn.loader == draw.loader:
                draw, places = drawn, new
                break
        return [(draw, place) for place in places[:number]]


def _refusal(
    step: Step,
    micro: MicroBatch,
    exchange: Exchange,
    deviation: float,
    structure: PassStructure,
    allowed: float,
    precision: str,
) -> UntappedLossError:
    went = [int(micro.example_ids[place]) for place in exchange.places]
    came = [int(exchange.micro.example_ids[place]) for place in exchange.places]
    seen = ", ".join(
        f"{name} ({rows or 'some'} rows per example)" for name, rows in sorted(set(structure.calls), key=str)
    )
    return UntappedLossError(
        f"step {step.index}: when examples {went} of its batch are exchanged for {came}, the gradient of training_step "
        f"changes by something else than the weights of these examples say, which enter at {seen}: {deviation:.1e} of "
        f"what they add to it is missing or too much (allowed {allowed:.0e} in {precision}). Either a term of the loss "
        "is reached by no weight, or a row of the loss is given to the wrong example, or examples of a batch see each "
        f"other. {WAYS_OUT}"
    )


def _scaled_by_frequency(objective: Objective) -> str:
    """Return the name of an embedding by which examples of a batch see each other's indices; empty if there is none."""
    parts = objective.module.named_modules()
    return next((name for name, part in parts if getattr(part, "scale_grad_by_freq", False)), "")


def _structure(objective: Objective, step: Step, micro: MicroBatch) -> PassStructure | None:
    like = objective.parameters[0]
    weights = torch.ones(len(micro.example_ids), dtype=like.dtype, device=like.device)
    return objective.trace(step, micro, objective.batch(step, micro), weights).structure


def _shapes(batch: Any) -> list[torch.Size]:
    return [value.shape for value in tensors_in(batch)]


@contextmanager
def _left_as_it_is(objective: Objective) -> Iterator[None]:
    """Let nothing that is learnt inside of the rows, and no moved buffer or generator, stay."""
    buffers, orders = objective.read_buffers(), objective.orders
    objective.orders = orders.copy()
    try:
        with random_state.preserved():
            yield
    finally:
        objective.orders = orders
        with torch.no_grad():
            objective.load_buffers(buffers)
