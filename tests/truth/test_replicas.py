"""Many models at once against one training after another, over the shared table of runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_sgdinf.errors import NonFiniteError
from lightning_sgdinf.replay import Replayer
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth import Truth
from lightning_sgdinf.truth.replicas import Replicas
from tests.adjoint.cases import BY_NAME, Case, Recorded, opened, query_after, record

SOME = (
    "sgd-repeats-clip",
    "momentum-pairs",
    "dampened",
    "nesterov",
    "maximize",
    "momentum-cycle",
    "momentum-groups",
    "momentum-unused",
    "momentum-sometimes",
    "momentum-ema",
    "sgd-value",
    "adam-dead",
    "adam-sometimes",
    "amsgrad",
    "adamw",
    "adamw-batchnorm",
    "nadam-scalar",
    "radam",
    "adamax",
    "adagrad-start",
    "adadelta",
    "rmsprop-centred",
    "asgd-scalar",
    "batchnorm-triples",
    "batchnorm-cumulative",
    "batchnorm-frozen",
    "batchnorm-2d",
    "batchnorm-twice",
    "batchnorm-swa",
)
SETS = ((0,), (2, 5, 7))


def measured(run: Recorded, **more: object) -> Truth:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    return runner.counterfactuals(run.module, run.train, run.validation, log=run.log, **more)  # type: ignore[arg-type]


def trained_without(case: Case) -> Tensor:
    """The same by an ordinary training loop with example weights."""
    query = query_after(case)
    values = []
    for one in ((), *SETS):
        weights = torch.ones(case.batching.examples, dtype=torch.float64)
        weights[list(one)] = 0
        values.append(query(weights))
    return torch.stack(values[1:]) - values[0]


@pytest.mark.parametrize("name", SOME)
def test_values_are_those_of_a_plain_training_loop(name: str) -> None:
    case = BY_NAME[name]
    truth = measured(record(case), leave_out=SETS)
    expected = trained_without(case)
    assert expected.abs().max() > 1e-5, "the test is degenerate"
    assert (truth.values - expected).abs().max() < 1e-10
    assert truth.at_once == len(SETS), truth.notes


@pytest.mark.parametrize("name", ["dampened", "adamw-batchnorm", "adam-sometimes", "asgd-scalar", "nadam-scalar"])
def test_states_are_those_of_the_replayer(name: str) -> None:
    run = record(BY_NAME[name])
    keep = torch.rand(4, run.case.batching.examples, generator=torch.Generator().manual_seed(0)) > 0.4
    with opened(run) as recorded:
        again = Replayer(run.log, recorded.objective)
        replicas = Replicas(recorded, run.log.state(0), keep)
        for step in run.log.steps(0, len(run.log)):
            replicas.advance(step)
        states = [replicas.state(i) for i in range(len(replicas))]
        for own, state in zip(keep, states, strict=True):
            expected = again.run(run.log.state(0), 0, len(run.log), weights=own.double())
            assert apart(state, expected) < 1e-12
    assert apart(states[0], states[1]) > 1e-6, "the test is degenerate"


def test_replicas_can_be_thinned_out_doubled_and_joined_on_the_way() -> None:
    run = record(BY_NAME["batchnorm"])
    total, count = len(run.log), run.case.batching.examples
    keep = torch.ones(3, count, dtype=torch.bool)
    keep[1, 4] = keep[2, 9] = False
    late = torch.ones(1, count, dtype=torch.bool)
    late[0, 2] = False
    with opened(run) as recorded:
        again = Replayer(run.log, recorded.objective)
        replicas = Replicas(recorded, run.log.state(0), keep)
        for step in run.log.steps(0, total):
            if step.index == 4:
                replicas.select(torch.tensor([0, 2, 2]))
                replicas.join(late)
            replicas.advance(step)
        states = [replicas.state(i) for i in range(len(replicas))]
        assert replicas.keep.tolist() == [keep[0].tolist(), keep[2].tolist(), keep[2].tolist(), late[0].tolist()]
        assert apart(states[1], states[2]) == 0
        assert apart(states[2], again.run(run.log.state(0), 0, total, weights=keep[2].double())) < 1e-12
        assert apart(states[3], again.run(run.log.state(4), 4, total, weights=late[0].double())) < 1e-12


def test_a_run_that_diverges_is_named() -> None:
    run = record(BY_NAME["sgd"])
    keep = torch.ones(2, run.case.batching.examples, dtype=torch.bool)
    keep[1, 5] = False
    with opened(run) as recorded:
        replicas = Replicas(recorded, run.log.state(0), keep)
        with torch.no_grad():
            next(iter(replicas.stack.params.values()))[1] = float("nan")
        with pytest.raises(NonFiniteError, match=r"step 0 is nan with examples \[5\] left out"):
            replicas.advance(run.log.step(0))


def apart(a: ModelState, b: ModelState) -> float:
    one, other = ({x[:3]: x[3].double() for x in s.items()} for s in (a, b))
    assert one.keys() == other.keys()
    assert all(one[k].shape == other[k].shape for k in one)
    return max(float((one[k] - other[k]).abs().max()) for k in one)
