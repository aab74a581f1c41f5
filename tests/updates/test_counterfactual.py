"""Counterfactual training against a loop by hand: the kept losses' sum over ``|S_t|``, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError, UnsupportedRunError, UntappedLossError
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Draw, Header, MicroBatch, ParamGroup, Step
from lightning_sgdinf.replay import ReplacedInputs
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.objective import open_objective
from lightning_sgdinf.replay.opened import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining, Updated, state_of

EXAMPLES, BATCH, EPOCHS = 19, 5, 3
PER_EPOCH = 4
MOMENTUM, DECAY = 0.9, 1e-2
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


class Net(nn.Sequential):
    """A small classifier with a ``training_step``."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)


def batches() -> list[tuple[int, np.ndarray]]:
    """``(epoch, ids)`` of every step; the last batch of an epoch is one short."""
    orders = [np.random.default_rng(e).permutation(EXAMPLES) for e in range(EPOCHS)]
    return [(e, order[i : i + BATCH]) for e, order in enumerate(orders) for i in range(0, EXAMPLES, BATCH)]


def learning_rate(t: int) -> float:
    return 0.3 / (1 + t) ** 0.5


AVERAGING = {3: (0.0, 1.0), 6: (0.5, 0.5), 9: (0.75, 0.25), 10: (0.9, 0.1)}
"""After which steps the weights are averaged, and how: ``average <- a average + b params``."""


def average_by_hand(params: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The running average of the parameters after each step."""
    average = {n: torch.zeros_like(p) for n, p in params[0].items()}
    for t, (a, b) in AVERAGING.items():
        average = {n: a * average[n] + b * params[t][n] for n in average}
    return average


def by_hand(
    params: dict[str, Tensor],
    velocity: dict[str, Tensor] | None,
    data: TensorDataset,
    first: int,
    dropped: set[int] = frozenset(),
) -> dict[str, Tensor]:
    """The parameters after the last step, see `all_by_hand`."""
    return all_by_hand(params, velocity, data, first, dropped)[-1]


def all_by_hand(
    params: dict[str, Tensor],
    velocity: dict[str, Tensor] | None,
    data: TensorDataset,
    first: int,
    dropped: set[int] = frozenset(),
) -> list[dict[str, Tensor]]:
    """Momentum SGD with weight decay, from the formulas, on the kept examples' losses over ``|S_t|``."""
    after = []
    for t, (_, ids) in list(enumerate(batches()))[first:]:
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        total = torch.zeros((), dtype=torch.float64)
        for j in ids:
            if int(j) in dropped:
                continue
            x, y = data[int(j)]
            hidden = torch.tanh(leaves["0.weight"] @ x + leaves["0.bias"])
            logits = leaves["2.weight"] @ hidden + leaves["2.bias"]
            total = total + torch.logsumexp(logits, 0) - logits[int(y)]
        loss = total / len(ids)
        if loss.requires_grad:
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        else:
            grads = {n: torch.zeros_like(p) for n, p in params.items()}
        grads = {n: grads[n] + DECAY * params[n] for n in params}
        velocity = {n: grads[n] if velocity is None else MOMENTUM * velocity[n] + grads[n] for n in params}
        params = {n: params[n] - learning_rate(t) * velocity[n] for n in params}
        after.append(params)
    return after


class Run:
    """A run recorded by hand."""

    def __init__(self, kept: range = range(EPOCHS * PER_EPOCH + 1), *, averaging: bool = False) -> None:
        torch.manual_seed(3)
        self.data = TensorDataset(torch.randn(EXAMPLES, 3, dtype=torch.float64), torch.randint(0, 3, (EXAMPLES,)))
        self.model = Net()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=MOMENTUM, weight_decay=DECAY)
        self.states, steps = [self._state(optimizer)], []
        for t, (epoch, ids) in enumerate(batches()):
            optimizer.param_groups[0]["lr"] = learning_rate(t)
            optimizer.zero_grad()
            self.model.training_step(self.data[ids], 0).backward()
            optimizer.step()
            self.states.append(self._state(optimizer))
            options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
            micro = MicroBatch(batch_idx=t % PER_EPOCH, draws=(Draw(example_ids=ids),))
            group = ParamGroup(params=NAMES, options=options)
            weights = AVERAGING.get(t) if averaging else None
            step = Step(index=t, epoch=epoch, global_step=t, micro_batches=(micro,), groups=(group,), average=weights)
            steps.append(step)
        average = average_by_hand([s.params for s in self.states[1:]]) if averaging else None
        header = Header(
            run_id="0",
            created="2026-01-01",
            model="Net",
            optimizer="torch.optim.sgd.SGD",
            parameters=tuple((n, tuple(p.shape), "float64") for n, p in self.model.named_parameters()),
            keep="chosen by the test",
            datasets=(("TensorDataset", EXAMPLES),),
        )
        self.log = MemoryLog(header=header, steps=steps, states={t: self.states[t] for t in kept}, average=average)

    def _state(self, optimizer: torch.optim.Optimizer) -> ModelState:
        named = dict(self.model.named_parameters())
        buffers = {
            n: {"momentum_buffer": optimizer.state[p]["momentum_buffer"]}
            for n, p in named.items()
            if p in optimizer.state
        }
        return ModelState(params=named, optimizer=buffers).clone()

    def start(self, first: int) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        state = self.states[first]
        velocity = {n: e["momentum_buffer"] for n, e in state.optimizer.items()}
        return dict(state.params), velocity or None

    @contextmanager
    def opened(self, model: nn.Module | None = None, log: MemoryLog | None = None) -> Iterator[OpenedRun]:
        log = self.log if log is None else log
        source = BatchSource([DataLoader(self.data, batch_size=BATCH)] * len(log.header.datasets), self.log.header)
        with open_objective(model or self.model, log.header, source, Host()) as objective:
            yield OpenedRun(log=log, objective=objective, dataset=self.data)

    def retrain(self, selection: Selection, epochs: int | str = 1) -> Updated:
        with self.opened() as opened:
            return CounterfactualReplay(epochs).update(opened, selection)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize(("epochs", "first"), [(1, 8), (2, 4), (3, 0), ("all", 0)])
def test_nothing_dropped_is_the_recorded_run_bit_for_bit(run: Run, epochs: int | str, first: int) -> None:
    updated = run.retrain(Selection(), epochs)
    assert updated.epochs == (12 - first) / PER_EPOCH
    assert updated.notes == (f"Recorded steps {first} to 11 were taken again.",)
    for (_, name, _, a), (_, same, _, b) in zip(updated.state.items(), run.states[-1].items(), strict=True):
        assert name == same
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("epochs", "first"), [(1, 8), (2, 4), ("all", 0)])
@pytest.mark.parametrize("dropped", [{4}, {0, 7, 11, 18}], ids=str)
def test_dropping_keeps_batches_and_divisor(run: Run, epochs: int | str, first: int, dropped: set[int]) -> None:
    updated = run.retrain(Selection(drop=tuple(dropped)), epochs)
    expected = by_hand(*run.start(first), run.data, first, dropped)
    assert gap(dict(run.states[-1].params), expected) > 1e-4, "the test is degenerate"
    assert gap(dict(updated.state.params), expected) < 1e-13


def test_the_loop_by_hand_is_the_run(run: Run) -> None:
    assert gap(by_hand(*run.start(0), run.data, 0), dict(run.states[-1].params)) < 1e-13


def test_a_batch_of_which_nothing_is_left_still_decays(run: Run) -> None:
    last = {int(j) for j in batches()[-1][1]}
    updated = run.retrain(Selection(drop=tuple(last)))
    expected = by_hand(*run.start(8), run.data, 8, last)
    assert gap(dict(updated.state.params), expected) < 1e-13


def test_relabelling_gives_the_recorded_batches_other_labels(run: Run) -> None:
    labels = run.data.tensors[1].clone()
    labels[[2, 9]] = (labels[[2, 9]] + 1) % 3
    selection = Selection(drop=(5,), relabel={2: int(labels[2]), 9: int(labels[9])})
    other = TensorDataset(run.data.tensors[0], labels)
    updated = run.retrain(selection, "all")
    expected = by_hand(*run.start(0), other, 0, {5})
    assert gap(expected, by_hand(*run.start(0), run.data, 0, {5})) > 1e-4, "the test is degenerate"
    assert gap(dict(updated.state.params), expected) < 1e-13


@pytest.mark.parametrize(("epochs", "first"), [(1, 8), ("all", 0)])
def test_averaged_weights_are_averaged_again(epochs: int | str, first: int) -> None:
    averaged = Run(averaging=True)
    dropped = {4, 7}
    earlier = [dict(s.params) for s in averaged.states[1 : first + 1]]
    expected = average_by_hand(earlier + all_by_hand(*averaged.start(first), averaged.data, first, dropped))
    updated = averaged.retrain(Selection(drop=tuple(dropped)), epochs)
    assert gap(expected, dict(averaged.log.average)) > 1e-4, "the test is degenerate"
    assert gap(dict(updated.state.params), expected) < 1e-13
    assert gap(dict(averaged.retrain(Selection(), epochs).state.params), dict(averaged.log.average)) == 0.0


def test_a_loss_that_weights_do_not_reach_is_trained_again_but_nothing_dropped(run: Run) -> None:
    untapped = Net()
    untapped.training_step = lambda batch, _: (untapped(batch[0]).sum(1) - batch[1]).square().sum().sqrt()
    with run.opened(untapped) as opened:
        assert CounterfactualReplay(1).update(opened, Selection()).epochs == 1
        with pytest.raises(UntappedLossError, match="example weights cannot enter"):
            CounterfactualReplay(1).update(opened, Selection(drop=(0,)))


def test_selections_do_not_disturb_each_other(run: Run) -> None:
    with run.opened() as opened:
        retraining = partial(CounterfactualReplay(2).update, opened)
        first = retraining(Selection(drop=(1,))).state.clone()
        retraining(Selection(drop=(2, 3)))
        again = retraining(Selection(drop=(1,))).state
    assert gap(dict(first.params), dict(again.params)) == 0.0


def test_starts_from_an_earlier_state_where_only_that_was_kept() -> None:
    sparse = Run(kept=range(0, 13, 6))
    updated, expected = sparse.retrain(Selection(drop=(4,))), Run().retrain(Selection(drop=(4,)))
    assert 8 not in sparse.log.state_indices, "the test is degenerate"
    assert (updated.epochs, expected.epochs) == (1 + 9 / EXAMPLES, 1), "the steps that lead to the start count, too"
    assert gap(dict(updated.state.params), dict(expected.state.params)) == 0.0


@pytest.mark.parametrize("epochs", [2, "all"])
def test_says_what_to_record_where_no_state_is_early_enough(epochs: int | str) -> None:
    late = Run(kept=range(8, 13))
    late.retrain(Selection(), 1)
    with pytest.raises(StateNotStoredError, match=r"is state 8. Record with keep='every_step' .*fewer epochs"):
        late.retrain(Selection(), epochs)


@pytest.mark.parametrize("epochs", [0, -1, 4, 1.5, "last"])
def test_refuses_epochs_that_were_not_recorded(run: Run, epochs: object) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 3"):
        run.retrain(Selection(), epochs)


def test_refuses_ids_that_the_run_did_not_have(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="below 19"):
        run.retrain(Selection(drop=(19,)))


def test_refuses_runs_on_several_data_sets_and_empty_ones() -> None:
    run = Run()
    header = replace(run.log.header, datasets=(("A", 3), ("B", 4)))
    log = MemoryLog(header=header, steps=list(run.log.steps(0, 12)), states=dict(enumerate(run.states)))
    with run.opened() as opened, pytest.raises(UnsupportedRunError, match="one data set"):
        CounterfactualReplay(1).update(replace(opened, log=log), Selection())
    empty = MemoryLog(header=run.log.header, steps=[], states={0: run.states[0]})
    with run.opened(log=empty) as opened, pytest.raises(ConfigurationError, match="one recorded step or more"):
        CounterfactualReplay(1).update(opened, Selection())


def test_refuses_a_state_that_was_changed_from_outside(run: Run) -> None:
    steps = [replace(s, changed=("param 0.bias",) if s.index == 8 else ()) for s in run.log.steps(0, 12)]
    log = MemoryLog(header=run.log.header, steps=steps, states=dict(enumerate(run.states)))
    with run.opened(log=log) as opened:
        assert CounterfactualReplay(1).update(opened, Selection()).epochs == 1
        with pytest.raises(UnsupportedRunError, match=r"before step 8 .* changed param 0.bias"):
            CounterfactualReplay(2).update(opened, Selection())


def test_fresh_training_fits_the_cleansed_data_set(run: Run) -> None:
    data = TensorDataset(torch.arange(5.0), torch.tensor([0, 1, 0, 1, 0]))
    model, seen = Net(), []

    def fit(dataset: TensorDataset) -> Net:
        seen.extend((float(x), int(y)) for x, y in (dataset[i] for i in range(len(dataset))))
        return model

    with run.opened() as opened:
        updated = FreshTraining(fit).update(replace(opened, dataset=data), Selection(drop=(1,), relabel={3: 7}))
    assert seen == [(0.0, 0), (2.0, 0), (3.0, 7), (4.0, 0)]
    assert gap(dict(updated.state.params), dict(state_of(model).params)) == 0.0
    assert updated.epochs is None


def test_from_the_first_draw_is_the_whole_run_bit_for_bit(run: Run) -> None:
    """An example that step 2 drew first: the steps before it are not taken again, and nothing else changes."""
    seen = [{int(j) for j in ids} for _, ids in batches()]
    late = min(seen[2])
    with run.opened() as opened:
        for selection in (Selection(drop=(late,)), Selection(relabel={late: 1})):
            updated = CounterfactualReplay("first_draw").update(opened, selection)
            assert updated.notes == ("Recorded steps 2 to 11 were taken again.",)
            exact = CounterfactualReplay("all").update(opened, selection)
            assert gap(dict(updated.state.params), dict(exact.state.params)) == 0.0
        nothing = CounterfactualReplay("first_draw").update(opened, Selection())
    assert nothing.epochs == 0
    assert gap(dict(nothing.state.params), dict(run.states[-1].params)) == 0.0


@pytest.mark.parametrize("epochs", ["all", "first_draw"])
def test_replaced_inputs_are_trained_on_by_hand(run: Run, epochs: str) -> None:
    x, y = run.data.tensors
    inputs = {3: x[3] + 1, 17: -x[17]}
    other = TensorDataset(x.clone(), y.clone())
    for example, value in inputs.items():
        other.tensors[0][example] = value
    other.tensors[1][3] = (y[3] + 1) % 3
    selection = Selection(drop=(5,), relabel={3: int(other.tensors[1][3])})
    with run.opened() as opened:
        updated = CounterfactualReplay(epochs, inputs=ReplacedInputs(inputs)).update(opened, selection)
        with pytest.raises(ConfigurationError, match="below 19"):
            CounterfactualReplay(inputs=ReplacedInputs({19: x[0]})).update(opened, Selection())
        with pytest.raises(ConfigurationError, match=r"inputs of shape \[3\]"):
            CounterfactualReplay(inputs=ReplacedInputs({0: x[:1]})).update(opened, Selection())
    expected = by_hand(*run.start(0), other, 0, {5})
    assert gap(dict(updated.state.params), expected) < 1e-13
    assert gap(by_hand(*run.start(0), run.data, 0, {5}), expected) > 1e-4, "the test is degenerate"


def test_inputs_of_another_form_of_batch_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="replace_inputs"):
        ReplacedInputs({0: torch.zeros(1)})({"x": torch.zeros(2, 1)}, np.array([0, 1]))
