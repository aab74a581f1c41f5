"""Replay and extrapolate: against the same done by hand, its guard, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError, ForgettingError, StateNotStoredError, UnsupportedRunError
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.testing.runs import NormalisedNet, SmallNet, SmallRun, small_run
from lightning_sgdinf.updates import Corrected, CounterfactualReplay, ExtrapolatedReplay, Forgotten
from lightning_sgdinf.updates.line import extrapolated, shortest

CLASS = Selection(drop=(1, 4, 7, 10))
FREE = ExtrapolatedReplay(epochs=1, most=1000)


@contextmanager
def opened(run: SmallRun, log: Any = None) -> Iterator[OpenedRun]:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.open(run.model, run.train, run.validation, log=log or run.log) as open_run:
        yield open_run


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run(learnable=True)


def right(run: SmallRun, state: ModelState, ids: tuple[int, ...], net: type[SmallNet] = SmallNet) -> float:
    """Accuracy by a forward pass of one's own."""
    model = net()
    model.load_state_dict({**model.state_dict(), **state.params, **state.buffers})
    x, y = run.train.dataset.tensors
    with torch.no_grad():
        return float((model.eval()(x[list(ids)]).argmax(1) == y[list(ids)]).double().mean())


def with_labels(run: SmallRun, labels: Tensor) -> SmallRun:
    return replace(run, train=DataLoader(TensorDataset(run.train.dataset.tensors[0], labels), batch_size=4))


@pytest.mark.parametrize("epochs", [1, 2])
def test_it_is_the_replay_extrapolated_by_the_smallest_factor_that_forgets(small: SmallRun, epochs: int) -> None:
    with opened(small) as run:
        updated = replace(FREE, epochs=epochs).update(run, CLASS)
        replayed, final = CounterfactualReplay(epochs).update(run, CLASS).state, run.model
    assert updated.last_epochs == epochs
    for name, value in updated.state.params.items():
        assert torch.equal(value, final.params[name] + updated.factor * (replayed.params[name] - final.params[name]))

    def at(factor: float) -> float:
        return right(small, extrapolated(final, replayed, factor, frozenset()), CLASS.drop)

    assert right(small, final, CLASS.drop) == 1.0, "the test is degenerate"
    assert updated.accuracy == at(updated.factor) == 0
    assert updated.factor == 1 or at(updated.factor - (updated.factor / 3) / 2**6) > 0
    looks = (updated.epochs * 13 - epochs * 12) * 3 / len(CLASS.drop)
    assert looks == pytest.approx(round(looks))
    assert 3 <= looks <= 30, "forward passes over the set, a third of a gradient each"


def by_hand(run: SmallRun, first: int, without: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """The parameters after each step of the run, from one step on without some examples' losses."""
    model, (x, y) = SmallNet(), run.train.dataset.tensors
    model.load_state_dict(run.log.state(0).params)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    states = []
    for step in run.log.steps(0, len(run.log)):
        ids = [int(i) for i in step.example_ids]
        kept = [i for i in ids if step.index < first or i not in without]
        optimizer.zero_grad(set_to_none=False)
        (torch.nn.functional.cross_entropy(model(x[kept]), y[kept], reduction="sum") / len(ids)).backward()
        optimizer.step()
        states.append({n: v.detach().clone() for n, v in model.named_parameters()})
    return states


@pytest.mark.parametrize(("epochs", "kept"), [(1, range(10)), (2, range(10)), (2, (0, 2, 9))])
def test_the_mean_difference_of_the_last_epoch(small: SmallRun, epochs: int, kept: Any) -> None:
    log = MemoryLog(
        header=small.log.header, steps=list(small.log.steps(0, 9)), states={t: small.log.state(t) for t in kept}
    )
    with opened(small, log) as run:
        updated = replace(FREE, epochs=epochs, difference="mean").update(run, CLASS)
        whole = replace(FREE, epochs=3, difference="mean").update(run, CLASS)
        exact = CounterfactualReplay("all").update(run, CLASS)
    recorded, without = (by_hand(small, 9 - 3 * epochs, ids) for ids in ((), CLASS.drop))
    for name, value in updated.state.params.items():
        mean = sum(without[t][name] - recorded[t][name] for t in (6, 7, 8)) / 3
        even = 2 / 3 if epochs == 1 else 5 / 6  # of a difference that grows evenly over 3 or 6 steps
        expected = recorded[-1][name] + updated.factor * mean / even
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    assert right(small, updated.state, CLASS.drop) == updated.accuracy == 0
    assert all(torch.equal(v, whole.state.params[n]) for n, v in exact.state.params.items())


def test_variances_stay_positive_and_the_rest_of_the_buffers_is_a_line() -> None:
    normalised = small_run(make=NormalisedNet, learnable=True)
    with opened(normalised) as run:
        updated = FREE.update(run, CLASS)
        replayed, final = CounterfactualReplay(1).update(run, CLASS).state, run.model
    r, buffers = updated.factor, updated.state.buffers
    assert r > 1, "the test is degenerate"
    mean, var = "1.running_mean", "1.running_var"
    assert torch.allclose(buffers[mean], final.buffers[mean] + r * (replayed.buffers[mean] - final.buffers[mean]))
    logs = [state.buffers[var].log() for state in (final, replayed)]
    assert torch.allclose(buffers[var].log(), logs[0] + r * (logs[1] - logs[0]))
    assert torch.equal(buffers["1.num_batches_tracked"], replayed.buffers["1.num_batches_tracked"])
    assert right(normalised, updated.state, CLASS.drop, NormalisedNet) == 0


def test_the_epochs_double_while_the_factor_is_too_large(small: SmallRun) -> None:
    with opened(small) as run:
        factors = {k: replace(FREE, epochs=k).update(run, CLASS).factor for k in (1, 2)}
        assert factors[1] > factors[2] > 1, "the test is degenerate"
        updated = ExtrapolatedReplay(epochs=1, most=(factors[1] + factors[2]) / 2).update(run, CLASS)
        plain = replace(FREE, epochs=2).update(run, CLASS)
    assert (updated.last_epochs, updated.factor) == (2, factors[2])
    assert updated.epochs > plain.epochs + 12 / 13, "what was tried before is part of the cost"
    assert "Before, with r above" in updated.notes[1]


def test_the_whole_run_is_not_extrapolated(small: SmallRun) -> None:
    """The exact answer: taken as it is if it forgets, refused if it does not."""
    with opened(small) as run:
        exact = CounterfactualReplay("all").update(run, CLASS).state
        updated = ExtrapolatedReplay(epochs=3).update(run, CLASS)
        assert updated.factor == 1
        assert all(torch.equal(value, updated.state.params[n]) for n, value in exact.params.items())
        without = CounterfactualReplay("all").update
        known = [j for j in range(12) if right(small, without(run, Selection(drop=(j,))).state, (j,)) == 1]
        remembered = Selection(drop=(known[0],))
        with pytest.raises(ForgettingError, match=r"3 of 3 epochs: r .*to 3.*CounterfactualReplay\('all'\)"):
            ExtrapolatedReplay(epochs=3).update(run, remembered)
        with pytest.raises(ForgettingError, match=r"1 of 3 epochs: r .*; 2 of 3 epochs: r .*; 3 of 3"):
            ExtrapolatedReplay(epochs=1, most=1).update(run, remembered)


def test_epochs_of_little_learning_count_little(small: SmallRun) -> None:
    """``"auto"``: half an epoch at the largest rate; with rates of 1, 0.25 and 0.25 that is the last two."""
    rates = [1.0] * 3 + [0.25] * 6
    steps = [
        replace(s, groups=tuple(replace(g, options={**g.options, "lr": rates[s.index]}) for g in s.groups))
        for s in small.log.steps(0, 9)
    ]
    log = MemoryLog(header=small.log.header, steps=steps, states={t: small.log.state(t) for t in range(10)})
    with opened(small, log) as run:
        assert ExtrapolatedReplay(most=1000).update(run, CLASS).last_epochs == 2
    with opened(small) as run:
        assert ExtrapolatedReplay(most=1000).update(run, CLASS).last_epochs == 1


def test_relabelled_examples_are_corrected_by_the_best_of_the_factors(small: SmallRun) -> None:
    selection, rest = Selection(relabel={1: 2, 4: 2}), tuple(j for j in range(13) if j not in (1, 4))
    labels = small.train.dataset.tensors[1].clone()
    labels[[1, 4]] = 2
    relabelled = with_labels(small, labels)
    with opened(small) as run:
        updated = FREE.update(run, selection)
        replayed, final = CounterfactualReplay(1).update(run, selection).state, run.model
    means = []
    for power in range(12):
        state = extrapolated(final, replayed, 1.15**power, frozenset())
        one, other = right(relabelled, state, (1, 4)), right(relabelled, state, rest)
        means.append(2 * one * other / max(one + other, 1e-300))
    assert len(set(means)) > 1, "the test is degenerate"
    assert updated.factor == 1.15 ** means.index(max(means))
    assert updated.accuracy == right(relabelled, updated.state, (1, 4))


def test_two_processes_give_what_one_gives(small: SmallRun) -> None:
    """The same batches, half a batch a process, whose gradients are averaged: equal to rounding."""

    def split(step: Any) -> Any:
        (micro,) = step.micro_batches
        (draw,) = micro.draws
        halves = [replace(draw, example_ids=part) for part in (draw.example_ids[:2], draw.example_ids[2:])]
        micros = tuple(replace(micro, draws=(half,), rank=rank) for rank, half in enumerate(halves))
        return replace(step, micro_batches=micros, accumulation=2)

    states = {t: small.log.state(t) for t in (0, 6, 9)}
    log = MemoryLog(header=small.log.header, steps=[split(s) for s in small.log.steps(0, 9)], states=states)
    with opened(small) as run, opened(small, log) as parallel:
        one, other = FREE.update(run, CLASS), FREE.update(parallel, CLASS)
    assert other.factor == pytest.approx(one.factor, rel=1e-9)
    assert all(torch.allclose(value, other.state.params[n], atol=1e-10) for n, value in one.state.params.items())


def test_averaged_weights_are_what_is_extrapolated(small: SmallRun) -> None:
    averaging = {6: (0.0, 1.0), 7: (0.5, 0.5), 8: (2 / 3, 1 / 3)}
    steps = [replace(s, average=averaging.get(s.index)) for s in small.log.steps(0, 9)]
    states = {t: small.log.state(t) for t in range(10)}
    average = {n: sum(states[t].params[n] for t in (7, 8, 9)) / 3 for n in states[9].params}
    log = MemoryLog(header=small.log.header, steps=steps, states=states, average=average)
    with opened(small, log) as run:
        updated, replayed = FREE.update(run, CLASS), CounterfactualReplay(1).update(run, CLASS).state
        final = run.model
        with pytest.raises(ConfigurationError, match="a mean already; take difference='end'"):
            replace(FREE, difference="mean").update(run, CLASS)
    for name, value in updated.state.params.items():
        assert torch.equal(final.params[name], average[name])
        assert torch.equal(value, average[name] + updated.factor * (replayed.params[name] - average[name]))


def test_a_record_of_some_states_serves(small: SmallRun) -> None:
    log = MemoryLog(
        header=small.log.header, steps=list(small.log.steps(0, 9)), states={t: small.log.state(t) for t in (0, 4, 9)}
    )
    late = MemoryLog(header=small.log.header, steps=list(small.log.steps(0, 9)), states={9: small.log.state(9)})
    with opened(small) as run, opened(small, log) as sparse:
        one, other = FREE.update(run, CLASS), FREE.update(sparse, CLASS)
    assert all(torch.equal(value, other.state.params[n]) for n, value in one.state.params.items())
    with opened(small, late) as run, pytest.raises(StateNotStoredError):
        FREE.update(run, CLASS)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(), r"Selection\(drop=ids\)"),
        (Selection(drop=(1,), relabel={2: 0}), "drops or relabels"),
        (Selection(drop=(1, 13)), "13"),
    ],
)
def test_selections_it_has_no_use_for_are_refused(small: SmallRun, selection: Selection, message: str) -> None:
    with opened(small) as run, pytest.raises(ConfigurationError, match=message):
        FREE.update(run, selection)


def test_a_set_that_is_forgotten_already_is_refused(small: SmallRun) -> None:
    y = small.train.dataset.tensors[1].clone()
    y[1] = (y[1] + 1) % 3  # a label that it was not trained with
    with opened(with_labels(small, y)) as run, pytest.raises(ConfigurationError, match="forgotten already"):
        FREE.update(run, Selection(drop=(1,)))


def test_numbers_out_of_range_are_refused(small: SmallRun) -> None:
    for make in (
        lambda: ExtrapolatedReplay(most=0.5),
        lambda: ExtrapolatedReplay(difference="median"),  # type: ignore[arg-type]
        lambda: Forgotten(accuracy=1.0),
        lambda: Corrected(examples=0),
    ):
        with pytest.raises(ConfigurationError):
            make()
    with opened(small) as run, pytest.raises(ConfigurationError, match="expected 1 to 3"):
        ExtrapolatedReplay(epochs=4).update(run, CLASS)
    steps = [replace(s, changed=("param 0.bias",) if s.index == 7 else ()) for s in small.log.steps(0, 9)]
    log = MemoryLog(header=small.log.header, steps=steps, states={t: small.log.state(t) for t in range(10)})
    with opened(small, log) as run, pytest.raises(UnsupportedRunError, match="before step 7"):
        FREE.update(run, CLASS)


@pytest.mark.parametrize("crossing", [0.3, 1.0, 17.0])
def test_the_shortest_step_brackets_the_crossing(crossing: float) -> None:
    far = shortest(lambda r: r >= crossing, low=0.0, high=0.01, growth=2.0, most=100.0)
    assert far is not None
    assert crossing <= far <= crossing * (1 + 2.0**-6)
    assert shortest(lambda r: r >= crossing, low=0.0, high=0.01, growth=2.0, most=0.2) is None


def test_a_tensor_of_another_kind_is_the_other_models() -> None:
    one, other = (ModelState(params={}, buffers={"n": torch.tensor(n)}) for n in (3, 5))
    assert extrapolated(one, other, 2.5, frozenset({"n"})).buffers["n"].equal(Tensor([5]).long()[0])
