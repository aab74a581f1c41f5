"""Tests that any model update must pass, one's own included.

Subclass in a test file, and pytest collects the methods::

    from lightning_sgdinf.testing import ModelUpdateSuite

    class TestMyUpdate(ModelUpdateSuite):
        update = MyUpdate()

They ask for what holds whatever the method: that the result is a model of its own, that the selection decides it and
nothing else does, and that run, model, data and random numbers are left as they were. They do not ask how good the
model is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.replay import OpenedRun, Replayer
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.testing.fingerprints import host_fingerprint, run_fingerprint
from lightning_sgdinf.testing.runs import NormalisedNet, SmallRun, small_run
from lightning_sgdinf.updates import ModelUpdate, Updated, load_state

EMPTY = Selection()


class ModelUpdateSuite:
    """Tests of one update on a short run; see the module's text.

    Attributes:
        update: What is tested.
        selection: Examples that were trained on, and whose absence must change the model.
        another: Others, likewise.
        relabelling: New labels that must change the model, unless the update refuses them.
        stochastic: The result depends on the global random generators: two calls agree under the same seed only.
        tolerance: Allowed difference between results that must be the same, as a part of the largest value.
    """

    update: ClassVar[ModelUpdate]
    selection: ClassVar[Selection] = Selection(drop=(7, 0, 4))
    another: ClassVar[Selection] = Selection(drop=(1, 9, 3))
    relabelling: ClassVar[Selection] = Selection(relabel={5: 1, 2: 1})
    stochastic: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.0

    def recorded(self) -> SmallRun:
        """Return the run to try the update on, made anew at each call, always the same.

        It is nine steps of a net with batch normalisation, a frozen parameter and dropout; override this for an update
        that such nets are not for.
        """
        return small_run(make=NormalisedNet)

    def test_the_state_fits_the_model(self) -> None:
        """The state has each trained parameter and each buffer, in the model's shape and dtype, and nothing unknown."""
        run = self.recorded()
        params, buffers = dict(run.model.named_parameters()), dict(run.model.named_buffers())
        trained = {name for name, parameter in params.items() if parameter.requires_grad}
        for state in _states(self, run):
            assert trained <= set(state.params), f"no values for {sorted(trained - set(state.params))}"
            assert set(state.params) <= set(params), f"not in the model: {sorted(set(state.params) - set(params))}"
            assert set(state.buffers) == set(buffers), f"buffers: {sorted(set(state.buffers) ^ set(buffers))}"
            for name, value in _values(state).items():
                own = (params | buffers)[name]
                assert (value.shape, value.dtype) == (own.shape, own.dtype), name

    def test_the_state_is_finite(self) -> None:
        """No value is NaN or infinite."""
        for state in _states(self, self.recorded()):
            for part, name, _, value in state.items():
                assert bool(torch.isfinite(value).all()), f"{part} {name}"

    def test_the_state_goes_into_a_fresh_model(self) -> None:
        """`load_state` writes the state into a model that was never trained."""
        fresh, state = self.recorded().model, _updated(self, self.recorded(), self.selection).state
        load_state(fresh, state)
        after = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
        wrong = [name for name, value in _values(state).items() if not torch.equal(after[name], value)]
        assert not wrong, f"not as in the state: {wrong}"

    def test_the_state_has_memory_of_its_own(self) -> None:
        """Overwriting a state changes neither the record nor a later result, and using the run does not change it."""
        run = self.recorded()
        record = run_fingerprint(run)
        with _open(run) as opened:
            state = self._call(opened, self.selection).state
            assert not any(value.requires_grad for *_, value in state.items()), "a tensor is part of a graph"
            copy = state.clone()
            again = self._call(opened, self.selection).state
            _take_again(opened)
            for *_, value in again.items():
                value.fill_(1)
            _expect_same(
                state, copy, self.tolerance, "a state changed when the run was used, or when another was overwritten"
            )
            assert run_fingerprint(run) == record, "a state shares memory with the record or the data"
            _expect_same(
                self._call(opened, self.selection).state, copy, self.tolerance, "an earlier result was overwritten"
            )
        _expect_same(state, copy, self.tolerance, "a state changed when the run was closed")

    def test_the_opened_run_serves_on(self) -> None:
        """The recorded steps, taken again on the opened run, lead where they led before the update, bit for bit."""
        with _open(self.recorded()) as opened:
            before = _take_again(opened)
            for selection in (EMPTY, self.selection):
                self._call_or_refuse(opened, selection)
                after = _take_again(opened)
                assert [one[:3] for one in after.items()] == [one[:3] for one in before.items()], "tensors are missing"
                pairs = zip(before.items(), after.items(), strict=True)
                wrong = [one[1] for one, other in pairs if not torch.equal(one[3], other[3])]
                assert not wrong, f"the recorded steps now lead elsewhere in {wrong}"

    def test_random_generators_are_left_alone(self) -> None:
        """The global generators of torch, numpy and Python stand where they stood, as soon as the update returns."""
        with _open(self.recorded()) as opened, random_state.seeded(5):
            before = random_state.capture()
            self.update.update(opened, self.selection)
            moved = [name for name, state in random_state.capture().items() if state != before[name]]
        assert not moved, f"generators that moved: {moved}"

    def test_the_callers_model_is_left_alone(self) -> None:
        """Weights, gradients, flags, modes and hooks of the model are as they were, and torch's global settings."""
        run = self.recorded()
        parameters = list(run.model.parameters())
        parameters[0].requires_grad_(False)
        parameters[-1].grad = torch.ones_like(parameters[-1])
        next(run.model.children()).eval()
        before = host_fingerprint(run.model)
        _updated(self, run, self.selection)
        after = host_fingerprint(run.model)
        changed = [what for what in before | after if before.get(what) != after.get(what)]
        assert not changed, f"left otherwise: {changed}"

    def test_record_data_and_selection_are_left_alone(self) -> None:
        """Stored states and steps, the data sets and the selection are as they were."""
        for selection in (self.selection, self.relabelling):
            run, given = self.recorded(), replace(selection)
            before = run_fingerprint(run)
            with _open(run) as opened:
                self._call_or_refuse(opened, given)
            after = run_fingerprint(run)
            changed = [what for what in before if before[what] != after[what]]
            assert not changed, f"left otherwise: {changed}"
            assert given == selection, "the selection was changed"

    def test_two_calls_agree(self) -> None:
        """A result does not depend on earlier calls, nor on the global generators unless the update is stochastic."""
        with _open(self.recorded()) as opened:
            state = self._call(opened, self.selection, seed=1).state
            again = self._call(opened, self.selection, seed=1 if self.stochastic else 2).state
        _expect_same(again, state, self.tolerance, "two calls differ; is the update stochastic?")

    def test_the_callers_weights_are_not_read(self) -> None:
        """The result comes from the record, whatever trained weights and buffers the model has."""
        run, other = self.recorded(), self.recorded()
        with torch.no_grad():
            for tensor in [*(p for p in other.model.parameters() if p.requires_grad), *other.model.buffers()]:
                tensor.add_(1)
        expected = _updated(self, run, self.selection).state
        _expect_same(
            _updated(self, other, self.selection).state, expected, self.tolerance, "the model's own weights were read"
        )

    def test_selections_do_not_disturb_each_other(self) -> None:
        """A selection leads after others where it leads alone."""
        run = self.recorded()
        alone = _updated(self, run, self.selection).state
        with _open(run) as opened:
            for other in (EMPTY, self.another, self.relabelling):
                self._call_or_refuse(opened, other)
                state = self._call(opened, self.selection).state
                _expect_same(state, alone, self.tolerance, f"after {other} a selection leads elsewhere than alone")

    def test_dropping_changes_the_model(self) -> None:
        """Without some examples the model is another one, and without others yet another."""
        with _open(self.recorded()) as opened:
            states = [_unchanged(self, opened)]
            states += [self._call(opened, selection).state for selection in (self.selection, self.another)]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert _difference(states[one], states[other]) > self.tolerance, "the selection is ignored"

    def test_relabelling_changes_the_model_or_is_refused(self) -> None:
        """With new labels the model is another one; an update that has no use for them raises an error of ours."""
        with _open(self.recorded()) as opened:
            relabelled = self._call_or_refuse(opened, self.relabelling)
            if relabelled is not None:
                assert _difference(relabelled.state, _unchanged(self, opened)) > self.tolerance, (
                    "new labels are ignored"
                )

    def test_the_order_of_ids_does_not_matter(self) -> None:
        """The ids of a selection in another order lead to the same model."""
        drop, relabel = self.selection.drop, self.relabelling.relabel
        with _open(self.recorded()) as opened:
            for selection, other in (
                (self.selection, Selection(drop=drop[::-1])),
                (self.relabelling, Selection(relabel=dict(list(relabel.items())[::-1]))),
            ):
                updated, again = self._call_or_refuse(opened, selection), self._call_or_refuse(opened, other)
                assert (updated is None) == (again is None), "refused in one order only"
                if updated is not None and again is not None:
                    _expect_same(again.state, updated.state, self.tolerance, "the order of ids matters")

    def test_ids_outside_the_data_set_are_refused(self) -> None:
        """An id that the run's data set does not have is a `ConfigurationError` that names it."""
        with _open(self.recorded()) as opened:
            outside = opened.examples + 1234
            for selection in (Selection(drop=(0, outside)), Selection(relabel={0: 1, outside: 1})):
                message = _refusal(self.update, opened, selection)
                assert message is not None, f"example {outside} of {opened.examples} was accepted"
                assert str(outside) in message, f"the message does not name {outside}: {message}"

    def test_cost_and_notes_are_plain(self) -> None:
        """Seconds are finite and not negative, epochs too or ``None``, and notes are sentences."""
        for selection in (EMPTY, self.selection):
            with _open(self.recorded()) as opened:
                updated = self._call_or_refuse(opened, selection)
            if updated is None:
                continue
            assert isinstance(updated, Updated), f"expected an Updated, got {type(updated).__name__}"
            assert 0 <= updated.seconds < float("inf"), f"seconds: {updated.seconds}"
            assert updated.epochs is None or 0 <= updated.epochs < float("inf"), f"epochs: {updated.epochs}"
            assert isinstance(updated.notes, tuple), "notes: expected a tuple"
            assert all(isinstance(note, str) and note.strip() for note in updated.notes), updated.notes

    def _call(self, opened: OpenedRun, selection: Selection, *, seed: int = 1) -> Updated:
        with random_state.seeded(seed):
            return self.update.update(opened, selection)

    def _call_or_refuse(self, opened: OpenedRun, selection: Selection) -> Updated | None:
        """Return the outcome, or ``None`` if the update refuses new labels or an empty selection, as it may."""
        try:
            return self._call(opened, selection)
        except SgdInfluenceError as error:
            if selection.relabel or (selection == EMPTY and isinstance(error, ConfigurationError)):
                return None
            raise


def _states(suite: ModelUpdateSuite, run: SmallRun) -> list[ModelState]:
    """Return where the empty selection leads, unless it is refused, and where the other does."""
    with _open(run) as opened:
        outcomes = [suite._call_or_refuse(opened, EMPTY), suite._call(opened, suite.selection)]
    return [outcome.state for outcome in outcomes if outcome is not None]


def _unchanged(suite: ModelUpdateSuite, opened: OpenedRun) -> ModelState:
    """Return the model of everything: what the empty selection leads to or, if it is refused, the run's own."""
    outcome = suite._call_or_refuse(opened, EMPTY)
    return opened.model if outcome is None else outcome.state


def _updated(suite: ModelUpdateSuite, run: SmallRun, selection: Selection) -> Updated:
    with _open(run) as opened:
        return suite._call(opened, selection)


def _open(run: SmallRun) -> AbstractContextManager[OpenedRun]:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    return runner.open(run.model, run.train, run.validation, log=run.log)


def _take_again(opened: OpenedRun) -> ModelState:
    log = opened.log
    return Replayer(log, opened.objective).run(log.state(0), 0, len(log))


def _values(state: ModelState) -> dict[str, Tensor]:
    return {**state.params, **state.buffers}


def _difference(state: ModelState, other: ModelState) -> float:
    """Return the largest difference of parameters and buffers, as a part of the largest of their values."""
    ours, theirs = _values(state), _values(other)
    assert ours.keys() == theirs.keys(), f"in one of two states only: {sorted(ours.keys() ^ theirs.keys())}"
    largest = max(float(value.abs().max()) for value in theirs.values())
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items()) / largest


def _expect_same(state: ModelState, expected: ModelState, tolerance: float, complaint: str) -> None:
    difference = _difference(state, expected)
    assert difference <= tolerance, f"{complaint} (they differ by {difference:.2g} of the largest value)"


def _refusal(update: ModelUpdate, opened: OpenedRun, selection: Selection) -> str | None:
    """Return the message of a `ConfigurationError`, or ``None`` if the update accepts the selection."""
    try:
        update.update(opened, selection)
    except ConfigurationError as error:
        return str(error)
    return None
