"""The suite that ships, on every update, and on wrong ones: each fails in the method that asks for what it lacks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.testing import ModelUpdateSuite
from lightning_sgdinf.testing.runs import NormalisedNet, SmallRun, small_run
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining, Updated


def fit(dataset: Any) -> nn.Module:
    """Two epochs from a seed of its own."""
    torch.manual_seed(11)
    return fit_unseeded(dataset)


def fit_unseeded(dataset: Any) -> nn.Module:
    model = NormalisedNet()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for batch in [*DataLoader(dataset, batch_size=5, drop_last=True)] * 2:
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    return model


class TestReplayOfAllEpochs(ModelUpdateSuite):
    update = CounterfactualReplay("all")


class TestReplayOfTheLastEpoch(ModelUpdateSuite):
    update = CounterfactualReplay(1)


class TestReplayOfAPlainNet(ModelUpdateSuite):
    update = CounterfactualReplay(2)

    def recorded(self) -> SmallRun:
        return small_run()


class TestFreshTraining(ModelUpdateSuite):
    update = FreshTraining(fit)


class TestFreshTrainingWithoutASeed(ModelUpdateSuite):
    update = FreshTraining(fit_unseeded)
    stochastic = True


RIGHT = CounterfactualReplay("all")


@dataclass(frozen=True)
class Around:
    """The right update, with something done to the selection before it and to the outcome after it."""

    before: Callable[[OpenedRun, Selection], Selection] = lambda run, selection: selection
    after: Callable[[OpenedRun, Updated], Updated] = lambda run, updated: updated

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        return self.after(run, RIGHT.update(run, self.before(run, selection)))


def outcome(change: Callable[[Updated], Updated]) -> Around:
    """An update whose outcome is changed."""
    return Around(after=lambda run, updated: change(updated))


def values(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], part: str = "params") -> Around:
    """An update whose parameters or buffers are changed."""
    return outcome(lambda u: replace(u, state=replace(u.state, **{part: change(dict(getattr(u.state, part)))})))


def deed(act: Callable[[OpenedRun], Any]) -> Around:
    """An update that does something else besides."""

    def after(run: OpenedRun, updated: Updated) -> Updated:
        act(run)
        return updated

    return Around(after=after)


def chosen(change: Callable[[Selection], Selection]) -> Around:
    """An update that does not carry out the selection it is given."""
    return Around(before=lambda run, selection: change(selection))


def module_of(run: OpenedRun) -> Any:
    return run.objective.module


def shifted(state: ModelState, by: float) -> ModelState:
    return replace(state, params={n: v + by for n, v in state.params.items()})


def noise(run: OpenedRun, updated: Updated) -> Updated:
    with torch.random.fork_rng():
        return replace(updated, state=shifted(updated.state, float(torch.rand(()))))


class Counting:
    """Each call gives another model."""

    calls = 0

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        self.calls += 1
        updated = RIGHT.update(run, selection)
        return replace(updated, state=shifted(updated.state, self.calls))


class Continuing:
    """What was ever dropped stays dropped."""

    def __init__(self) -> None:
        self.dropped: set[int] = set()

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        self.dropped |= set(selection.drop)
        return RIGHT.update(
            run, Selection(drop=tuple(self.dropped - set(selection.relabel)), relabel=selection.relabel)
        )


class Forgetful:
    """The first selection decides for as long as the run is open."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        updated = run.once("the outcome", lambda: RIGHT.update(run, selection))
        return replace(updated, state=updated.state.clone())


class Cached:
    """The same tensors are handed out each time."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        return run.once(("the outcome", selection.drop), lambda: RIGHT.update(run, selection))


class FromTheCallersWeights:
    """The weights that the model has are taken for the trained ones."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        own = float(module_of(run)[0].bias.detach().sum())
        updated = RIGHT.update(run, selection)
        return replace(updated, state=shifted(updated.state, own))


class RelabellingInPlace:
    """New labels are written into the caller's data set."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        selection.check(run.examples)
        for example, label in selection.relabel.items():
            run.dataset.tensors[1][example] = label
        return RIGHT.update(run, Selection(drop=selection.drop))


def hand_out_the_record(run: OpenedRun, updated: Updated) -> Updated:
    log: Any = run.log
    return replace(updated, state=log._states[len(log)])


def hand_out_the_module(run: OpenedRun, updated: Updated) -> Updated:
    params = {n: p.detach() for n, p in zip(run.objective.vector.names, run.objective.parameters, strict=True)}
    return replace(updated, state=ModelState(params=params, buffers=updated.state.buffers))


def spoil_the_record(run: OpenedRun) -> None:
    log: Any = run.log
    log._states[0].params["0.bias"].add_(1)


def drop_inside_only(run: OpenedRun, selection: Selection) -> Selection:
    return Selection(
        drop=tuple(j for j in selection.drop if j < run.examples),
        relabel={j: c for j, c in selection.relabel.items() if j < run.examples},
    )


def refuse_without_a_name(run: OpenedRun, selection: Selection) -> Selection:
    if drop_inside_only(run, selection) != selection:
        raise ConfigurationError("an id is outside")
    return selection


def refuse_labels(run: OpenedRun, selection: Selection) -> Selection:
    if selection.relabel:
        selection.check(run.examples)
        raise UnsupportedRunError("new labels are of no use here; drop the examples")
    return selection


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {n: v for n, v in tensors.items() if n != name}


WRONG: dict[str, tuple[str, Callable[[], Any]]] = {
    "a parameter is missing": ("the_state_fits_the_model", lambda: values(without("0.bias"))),
    "a buffer is missing": ("the_state_fits_the_model", lambda: values(without("1.running_mean"), "buffers")),
    "names of another model": (
        "the_state_fits_the_model",
        lambda: values(lambda tensors: {f"net.{n}": v for n, v in tensors.items()}),
    ),
    "another name besides": (
        "the_state_fits_the_model",
        lambda: values(lambda tensors: {**tensors, "mask": torch.ones(3)}),
    ),
    "single precision": (
        "the_state_fits_the_model",
        lambda: values(lambda tensors: {n: v.float() for n, v in tensors.items()}),
    ),
    "flat": ("the_state_goes_into_a_fresh_model", lambda: values(lambda t: {n: v.flatten() for n, v in t.items()})),
    "NaN": (
        "the_state_is_finite",
        lambda: values(lambda tensors: {**tensors, "0.bias": tensors["0.bias"] * torch.nan}),
    ),
    "infinite": ("the_state_is_finite", lambda: values(lambda t: {n: v / 0 for n, v in t.items()}, "buffers")),
    "views into the record": ("the_state_has_memory_of_its_own", lambda: Around(after=hand_out_the_record)),
    "views into the module": ("the_state_has_memory_of_its_own", lambda: Around(after=hand_out_the_module)),
    "the same tensors twice": ("the_state_has_memory_of_its_own", Cached),
    "part of a graph": (
        "the_state_has_memory_of_its_own",
        lambda: values(lambda tensors: {n: v.requires_grad_() for n, v in tensors.items()}),
    ),
    "leaves the module in eval mode": ("the_opened_run_serves_on", lambda: deed(lambda run: module_of(run).eval())),
    "leaves a layer frozen": (
        "the_opened_run_serves_on",
        lambda: deed(lambda run: module_of(run)[0].requires_grad_(False)),
    ),
    "leaves another layer": (
        "the_opened_run_serves_on",
        lambda: deed(lambda run: module_of(run).__setitem__(2, nn.ReLU())),
    ),
    "moves torch's generator": ("random_generators_are_left_alone", lambda: deed(lambda run: torch.rand(()))),
    "moves numpy's generator": ("random_generators_are_left_alone", lambda: deed(lambda run: np.random.rand())),
    "moves Python's generator": ("random_generators_are_left_alone", lambda: deed(lambda run: random.random())),
    "leaves a hook": (
        "the_callers_model_is_left_alone",
        lambda: deed(lambda run: module_of(run)[0].register_forward_hook(lambda *_: None)),
    ),
    "leaves an attribute": (
        "the_callers_model_is_left_alone",
        lambda: deed(lambda run: setattr(module_of(run), "_w", 1)),
    ),
    "puts another parameter in place": (
        "the_callers_model_is_left_alone",
        lambda: deed(lambda run: setattr(module_of(run)[0], "bias", nn.Parameter(torch.zeros(4).double()))),
    ),
    "switches gradients off": (
        "the_callers_model_is_left_alone",
        lambda: deed(lambda run: torch.set_grad_enabled(False)),
    ),
    "writes labels into the data": ("record_data_and_selection_are_left_alone", RelabellingInPlace),
    "writes into the record": ("record_data_and_selection_are_left_alone", lambda: deed(spoil_the_record)),
    "empties the selection": (
        "record_data_and_selection_are_left_alone",
        lambda: chosen(lambda selection: (selection.relabel.clear(), selection)[1]),  # type: ignore[attr-defined]
    ),
    "draws and does not say so": ("two_calls_agree", lambda: Around(after=noise)),
    "another one at each call": ("two_calls_agree", Counting),
    "reads the caller's weights": ("the_callers_weights_are_not_read", FromTheCallersWeights),
    "what was dropped stays dropped": ("selections_do_not_disturb_each_other", Continuing),
    "the first selection decides": ("selections_do_not_disturb_each_other", Forgetful),
    "drops nothing": ("dropping_changes_the_model", lambda: chosen(lambda s: Selection(relabel=s.relabel))),
    "drops as many others": (
        "dropping_changes_the_model",
        lambda: chosen(lambda s: replace(s, drop=tuple(range(9, 9 + len(s.drop))))),
    ),
    "ignores labels": (
        "relabelling_changes_the_model_or_is_refused",
        lambda: chosen(lambda s: Selection(drop=s.drop)),
    ),
    "drops the first one": ("the_order_of_ids_does_not_matter", lambda: chosen(lambda s: replace(s, drop=s.drop[:1]))),
    "passes over ids outside": ("ids_outside_the_data_set_are_refused", lambda: Around(before=drop_inside_only)),
    "does not name ids outside": ("ids_outside_the_data_set_are_refused", lambda: Around(before=refuse_without_a_name)),
    "negative seconds": ("cost_and_notes_are_plain", lambda: outcome(lambda u: replace(u, seconds=-1.0))),
    "epochs that are no number": ("cost_and_notes_are_plain", lambda: outcome(lambda u: replace(u, epochs=math.nan))),
    "a note that is not in a tuple": ("cost_and_notes_are_plain", lambda: outcome(lambda u: replace(u, notes="Done."))),
    "an empty note": ("cost_and_notes_are_plain", lambda: outcome(lambda u: replace(u, notes=("",)))),
    "a bare state": ("cost_and_notes_are_plain", lambda: outcome(lambda u: u.state)),
}
"""What is wrong, the method of the suite that is for it, and an update that does it."""

METHODS = [name.removeprefix("test_") for name in dir(ModelUpdateSuite) if name.startswith("test_")]


def run_method(update: Any, name: str) -> None:
    suite = type("Suite", (ModelUpdateSuite,), {"update": update})
    getattr(suite(), f"test_{name}")()


@pytest.fixture
def _gradients_on() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


@pytest.mark.usefixtures("_gradients_on")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_updates_fail(what: str) -> None:
    name, make = WRONG[what]
    with pytest.raises((AssertionError, SgdInfluenceError)):
        run_method(make(), name)


@pytest.mark.parametrize("name", METHODS)
def test_what_surrounds_the_wrong_ones_is_right(name: str) -> None:
    run_method(Around(), name)


def test_each_method_has_a_wrong_update() -> None:
    assert {name for name, _ in WRONG.values()} == set(METHODS)


@pytest.mark.parametrize("name", [n for n in METHODS if "relabelling" in n or "selection" in n or "order" in n])
def test_refusing_labels_is_right(name: str) -> None:
    run_method(Around(before=refuse_labels), name)


def test_a_tolerance_bears_small_differences() -> None:
    suite = type("Suite", (ModelUpdateSuite,), {"update": Around(after=noise), "tolerance": 2.0})
    suite().test_two_calls_agree()
