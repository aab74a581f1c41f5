"""Properties of a whole walk."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.adjoint import AdjointStep
from lightning_sgdinf.checks import StepComparison
from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError, StepMismatchError
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.query import ExampleLoss, MeanLoss, PerClassLoss
from lightning_sgdinf.scoring.walk import Walk
from tests.adjoint.cases import (
    BY_NAME,
    PLAIN,
    REPEATS,
    Batching,
    Case,
    Recorded,
    altered,
    record,
    thinned,
    unrolled,
)


def score(
    run: Recorded, log: MemoryLog | None = None, certificate: Any = "off", query: Any = None, **more: Any
) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", certificate=certificate, progress=False, **more)
    return runner.run(run.module, run.train, run.validation, log=log or run.log, query=query)


SPARSE = ("adamw", "momentum-sometimes", "batchnorm-2d", "dampened", "batchnorm-ema", "momentum-cycle")


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("k", [2, 4])
def test_sparse_states_give_the_same_bits_as_dense_ones(name: str, k: int) -> None:
    run = record(BY_NAME[name])
    dense = score(run).values
    total = len(run.log)
    sparse = score(run, thinned(run.log, range(0, total, k)), certificate="fast")
    assert torch.equal(sparse.values, dense)
    rebuilt = total - len(range(0, total, k))
    assert any(f"{rebuilt} states were rebuilt" in note for note in sparse.certificate.notes)
    assert torch.equal(score(run, thinned(run.log, [0]), memory_bytes=1).values, dense)


def test_a_rebuilt_state_that_differs_from_the_recorded_one_is_an_error() -> None:
    run = record(BY_NAME["momentum"])
    sparse = thinned(run.log, [0, 4])
    sparse._checksums[3] ^= 1
    sparse.header = replace(sparse.header, environment={"threads": 97})
    with pytest.raises(StepMismatchError, match=r"state 3, rebuilt by taking step 2 again.*set_num_threads\(97\)"):
        score(run, sparse, rebuild="exact")


def test_states_are_not_rebuilt_in_another_precision() -> None:
    run = record(BY_NAME["momentum"])
    sparse = thinned(run.log, [0])
    names = tuple((name, shape, "float32") for name, shape, _ in sparse.header.parameters)
    sparse.header = replace(sparse.header, parameters=names)
    sparse._checksums[1] ^= 1
    with pytest.raises(ConfigurationError, match=r"recorded in float32 and the replay computes in float64"):
        score(run, sparse, precision="64-true")


def test_without_any_early_state_the_remedy_is_named() -> None:
    run = record(BY_NAME["momentum"])
    with pytest.raises(StateNotStoredError, match="keep='every_step'"):
        score(run, thinned(run.log, [], keep="final"))


def reordered(batching: Batching) -> Batching:
    """The same batches, each in another order."""

    class Turned(Batching):
        def steps(self) -> Any:
            return [(epoch, [ids[::-1].copy() for ids in batches]) for epoch, batches in super().steps()]

    return Turned(examples=batching.examples, size=batching.size, epochs=batching.epochs)


@pytest.mark.parametrize("name", ["momentum", "adam", "batchnorm"])
def test_the_order_within_a_batch_does_not_matter(name: str) -> None:
    case = altered(BY_NAME[name], batching=PLAIN)
    turned = altered(case, batching=reordered(PLAIN))
    one, other = record(case), record(turned)
    assert one.log.step(0).example_ids.tolist() == other.log.step(0).example_ids.tolist()[::-1]
    a, b = score(one).values, score(other).values
    assert a.abs().max() > 1e-4
    assert (a - b).abs().max() < 1e-11 * a.abs().max()


@pytest.mark.parametrize("name", ["momentum", "adamw-groups", "sgd-repeats-clip", "sgd-value", "adagrad"])
def test_micro_batches_are_one_big_batch(name: str) -> None:
    big = altered(BY_NAME[name], batching=Batching(size=6, epochs=2))
    split = altered(BY_NAME[name], batching=Batching(size=2, accumulation=3, epochs=2))
    a, b = score(record(big)).values, score(record(split)).values
    assert a.abs().max() > 1e-4
    assert (a - b).abs().max() < 1e-10 * a.abs().max()


@pytest.mark.parametrize("name", ["nesterov", "adam-sometimes", "batchnorm-ema", "sgd-scalar"])
def test_several_queries_in_one_walk(name: str) -> None:
    run = record(BY_NAME[name])
    ids = (0, 4, 9)
    together = score(run, query=ExampleLoss(ids))
    assert together.values.shape == (12, 3)
    for column, i in enumerate(ids):
        alone = score(run, query=ExampleLoss((i,))).values
        assert alone.abs().max() > 1e-5
        assert torch.allclose(together.values[:, column], alone[:, 0], rtol=1e-11, atol=1e-15)
    assert together.queries == tuple(f"loss of validation example {i}" for i in ids)


def test_a_mean_of_queries_has_the_mean_of_their_scores() -> None:
    run = record(BY_NAME["adamw"])
    each = score(run, query=ExampleLoss(range(10))).values
    assert torch.allclose(each.mean(1), score(run, query=MeanLoss()).values[:, 0], rtol=1e-10, atol=1e-15)
    labels = torch.tensor([int(y) for _, y in run.validation.dataset])
    by_class = score(run, query=PerClassLoss()).values
    for column, kind in enumerate(sorted(set(labels.tolist()))):
        assert torch.allclose(each[:, labels == kind].mean(1), by_class[:, column], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_examples_that_were_never_drawn_have_no_influence(optimizer: str) -> None:
    case = altered(BY_NAME["momentum" if optimizer == "SGD" else "adam"], batching=REPEATS)
    drawn = {int(j) for _, batches in REPEATS.steps() for ids in batches for j in ids}
    never = [j for j in range(12) if j not in drawn]
    assert 11 in never
    values = score(record(case)).values
    assert all(values[j] == 0.0 for j in never)
    assert all(values[j] != 0.0 for j in drawn)


def test_repeats_within_a_batch_count_twice() -> None:
    ids = REPEATS.steps()[0][1][0]
    assert len(set(ids.tolist())) < len(ids), "the test is degenerate"


def single(case: Case) -> Case:
    return altered(case, dtype=torch.float32)


@pytest.mark.parametrize("name", ["momentum", "adamw", "batchnorm-2d"])
def test_float32_records_are_near_and_float64_walks_of_them_nearer(name: str) -> None:
    exact = unrolled(BY_NAME[name])
    run = record(single(BY_NAME[name]))
    near = score(run).values
    nearer = score(run, precision="64-true").values
    size = exact.abs().max()
    assert near.dtype == nearer.dtype == torch.float64
    assert (near - exact).abs().max() < 1e-4 * size
    assert (nearer - exact).abs().max() < 1e-4 * size
    assert not torch.equal(near, nearer)


def test_what_is_random_in_training_does_not_depend_on_the_present_generators() -> None:
    run = record(BY_NAME["dampened"])
    first: Tensor = score(run).values
    torch.manual_seed(999)
    assert torch.equal(first, score(run).values)


@pytest.mark.parametrize("level", ["off", "fast"])
def test_states_are_streamed_and_none_is_kept(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(BY_NAME["momentum"])
    read, living = MemoryLog.state, []

    def state(self: MemoryLog, index: int) -> Any:
        value = read(self, index)
        living.append(weakref.ref(next(iter(value.params.values()))))
        return value

    seen = []
    visit = Walk._visit

    def watched(*args: Any) -> Any:
        seen.append(sum(ref() is not None for ref in living))
        return visit(*args)

    monkeypatch.setattr(MemoryLog, "state", state)
    monkeypatch.setattr(Walk, "_visit", watched)
    score(run, certificate=level)
    assert len(seen) == len(run.log)
    assert max(seen) <= 2  # before the step and, to compare with, after it


def test_a_step_is_compared_before_its_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    run, order = record(BY_NAME["momentum"]), []
    settles, differentiate = StepComparison.settles, AdjointStep._differentiate

    def compared(*args: Any) -> bool:
        order.append("compared")
        return settles(*args)

    def differentiated(*args: Any) -> Any:
        order.append("differentiated")
        return differentiate(*args)

    monkeypatch.setattr(StepComparison, "settles", compared)
    monkeypatch.setattr(AdjointStep, "_differentiate", differentiated)
    score(run, certificate="fast")
    assert order == ["compared", "differentiated"] * len(run.log)
