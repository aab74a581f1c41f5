"""Recorded steps taken again, forwards, against the plain training loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, UnknownOptimizerError
from lightning_sgdinf.log import ParamGroup, state_checksum
from lightning_sgdinf.replay import RecordedOptimizer, relabelled, replace_second
from lightning_sgdinf.state import ModelState
from tests.adjoint.cases import BY_NAME, altered, record, replayer, train

SOME = (
    "sgd-repeats-clip",
    "momentum-pairs",
    "dampened",
    "nesterov",
    "momentum-cycle",
    "momentum-sometimes",
    "sgd-value",
    "adamw",
    "adamw-groups",
    "amsgrad",
    "nadam-scalar",
    "rmsprop-momentum",
    "asgd",
    "adagrad-start",
    "batchnorm-2d",
    "batchnorm-cumulative",
    "batchnorm-frozen",
)


def same(a: ModelState, b: ModelState) -> bool:
    pairs = list(zip(a.items(), b.items(), strict=True))
    return all(x[:3] == y[:3] and torch.equal(x[3], y[3]) for x, y in pairs)


def gap(state: ModelState, module: torch.nn.Module) -> float:
    replayed = {**state.params, **state.buffers}
    return max(float((replayed[n] - v).abs().max()) for n, v in module.state_dict().items() if n in replayed)


@pytest.mark.parametrize("name", SOME)
def test_the_run_comes_out_bit_for_bit(name: str) -> None:
    run = record(BY_NAME[name])
    total = len(run.log)
    with replayer(run) as again:
        assert same(again.run(run.log.state(0), 0, total), run.log.state(total))
        state = run.log.state(0)
        for step in run.log.steps(0, total):
            state = again.advance(state, step)
            assert state_checksum(state) == run.log.state_checksum(step.index + 1)


@pytest.mark.parametrize("name", SOME)
def test_with_weights_it_is_the_plain_loop(name: str) -> None:
    case = BY_NAME[name]
    run = record(case)
    weights = torch.rand(case.batching.examples, dtype=torch.float64) * 2
    weights[3] = 0
    expected, _ = train(case, weights)
    with replayer(run) as again:
        end = again.run(run.log.state(0), 0, len(run.log), weights=weights)
    assert gap(run.log.state(len(run.log)), expected) > 1e-5, "the test is degenerate"
    assert gap(end, expected) < 1e-12


def test_new_labels_are_trained_on() -> None:
    case = BY_NAME["momentum"]
    run = record(case)
    labels: Tensor = case.data()[0].tensors[1].clone()
    drawn = int(run.log.step(0).example_ids[0])
    labels[drawn] = (labels[drawn] + 1) % 3
    expected, _ = train(case, None, labels=labels)
    with replayer(run) as again:
        end = again.run(run.log.state(0), 0, len(run.log), edit=relabelled({drawn: int(labels[drawn])}))
    assert gap(run.log.state(len(run.log)), expected) > 1e-3, "the test is degenerate"
    assert gap(end, expected) < 1e-13


def test_part_of_a_run() -> None:
    run = record(BY_NAME["adamw"])
    with replayer(run) as again:
        assert same(again.run(run.log.state(1), 1, 3), run.log.state(3))
        assert same(again.run(run.log.state(2), 2, 2), run.log.state(2))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 99)])
def test_steps_that_are_not_there(start: int, stop: int) -> None:
    run = record(BY_NAME["sgd"])
    with replayer(run) as again, pytest.raises(ConfigurationError, match="expected 0 <= start <= stop <= 9"):
        again.run(run.log.state(0), start, stop)


def test_an_optimizer_that_cannot_be_imported() -> None:
    run = record(altered(BY_NAME["sgd"]))
    object.__setattr__(run.log.header, "optimizer", "gone.Descent")
    with pytest.raises(UnknownOptimizerError, match=r"gone\.Descent, which is not here"), replayer(run):
        pass


class Scaled(torch.optim.SGD):
    """An optimizer of the caller's own."""

    def __init__(self, params, lr, scale=1.0):
        super().__init__(params, lr)
        self.scale = scale


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (torch.optim.SGD, {"lr": 0.1, "maximize": "yes"}, "expected a value such as"),
        (torch.optim.SGD, {"lr": "0.1"}, "does not take the options"),
        (torch.optim.SGD, {"lr": 0.1, "momentum": [0.1]}, "does not take the options|expected a value such as"),
        (torch.optim.SGD, {"lr": 0.1, "momentum": {"a": 1}}, "expected a number, a word"),
        (torch.optim.SGD, {"lr": 0.1, "params": 1}, "expected a number, a word"),
        (torch.optim.Adam, {"lr": 0.1, "betas": [0.9]}, "does not take the options|expected a value such as"),
        (torch.optim.SGD, {"lr": -1.0}, "does not take the options"),
        (Scaled, {"lr": 0.1, "scaler": 2.0}, "give the constructor an argument of that name"),
    ],
)
def test_options_that_a_constructor_does_not_have_or_take(kind: type, options: dict, said: str) -> None:
    recorded = RecordedOptimizer(f"{kind.__module__}.{kind.__qualname__}")
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UnknownOptimizerError, match=said):
        recorded.make([([parameter], ParamGroup(params=("w",), options=options))])


def test_options_that_change_into_another_sort() -> None:
    recorded = RecordedOptimizer("torch.optim.sgd.SGD")
    recorded.make([([torch.nn.Parameter(torch.zeros(2))], ParamGroup(params=("w",), options={"lr": 0.1}))])
    with pytest.raises(UnknownOptimizerError, match="expected a value such as"):
        recorded.options(ParamGroup(params=("w",), options={"lr": "0.1"}))


def test_options_that_nobody_reads_are_not_handed_over() -> None:
    recorded = RecordedOptimizer("torch.optim.sgd.SGD")
    group = ParamGroup(params=("w",), options={"lr": 0.1, "initial_lr": 0.2, "anything": "os.system"})
    assert recorded.options(group) == {"lr": 0.1}
    own = RecordedOptimizer(f"{Scaled.__module__}.{Scaled.__qualname__}")
    group = ParamGroup(params=("w",), options={"lr": 0.1, "scale": 2.0, "momentum": 0.5, "name": "x"})
    assert own.options(group) == {"lr": 0.1, "scale": 2.0, "momentum": 0.5}


def test_new_labels_take_the_form_of_the_old_ones() -> None:
    x = torch.zeros(3, 2)
    for old in (torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0], [1.0], [2.0]])):
        _, new, more = replace_second((x, old, "more"), [2, 0], [1, 2])
        assert new.flatten().tolist() == [2, 1, 1]
        assert (new.shape, new.dtype, more) == (old.shape, old.dtype, "more")
        assert old.flatten().tolist() == [0, 1, 2]
    with pytest.raises(ConfigurationError, match=r"got shape \[3, 4\] \(one-hot\?\); pass replace_labels"):
        replace_second((x, torch.zeros(3, 4)), [1], [3])
