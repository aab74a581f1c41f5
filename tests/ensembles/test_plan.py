"""Who is trained on what: nothing twice, nothing missing, and the same batches with and without some examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sgdinf.ensembles import ShardPlan
from lightning_sgdinf.ensembles.cost import forecast
from lightning_sgdinf.errors import ConfigurationError

NUMBERS = {"examples": 23, "shards": 3, "slices": 2, "epochs": 4, "batch_size": 3, "seed": 0}


@st.composite
def plans(draw: Any) -> ShardPlan:
    shards, slices = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return ShardPlan(
        examples=draw(st.integers(shards * slices, 40)),
        shards=shards,
        slices=slices,
        epochs=draw(st.integers((slices + 2) // 2, 12)),
        batch_size=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 5)),
    )


@settings(max_examples=40)
@given(plans())
def test_every_example_is_in_one_slice_of_one_shard(plan: ShardPlan) -> None:
    ids = [j for shard in range(plan.shards) for part in plan.slices_of(shard) for j in part.tolist()]
    assert sorted(ids) == list(range(plan.examples))
    sizes = [len(plan.members(shard)) for shard in range(plan.shards)]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(part) for shard in range(plan.shards) for part in plan.slices_of(shard))


@given(plans())
def test_the_work_is_that_of_the_epochs_however_many_slices_there_are(plan: ShardPlan) -> None:
    epochs = [plan.stage_epochs(stage) for stage in range(plan.slices)]
    assert min(epochs) >= 1
    work = sum((stage + 1) / plan.slices * count for stage, count in enumerate(epochs))
    assert work == pytest.approx(plan.epochs, abs=1.0)  # stages have whole epochs


@settings(max_examples=40)
@given(plans(), st.data())
def test_batches_have_every_kept_example_once_and_skip_the_others_in_place(plan: ShardPlan, data: Any) -> None:
    shard = data.draw(st.integers(0, plan.shards - 1))
    stage = data.draw(st.integers(0, plan.slices - 1))
    without = frozenset(data.draw(st.sets(st.integers(0, plan.examples - 1))))
    everyone = [j for batch in plan.batches(shard, stage, 1, frozenset()) for j in batch]
    known = [j for part in plan.slices_of(shard)[: stage + 1] for j in part.tolist()]
    assert sorted(everyone) == sorted(known)
    size, expected = plan.batch_size, []
    for start in range(0, len(everyone), size):
        rest = [j for j in everyone[start : start + size] if j not in without]
        if len(rest) == 1 and expected and size > 1:
            expected[-1] += rest
        elif rest:
            expected.append(rest)
    assert plan.batches(shard, stage, 1, without) == expected
    first = plan.first_stage(shard, without)
    holding = [r for r, part in enumerate(plan.slices_of(shard)) if without & set(part.tolist())]
    assert first == (holding[0] if holding else None)


def test_order_differs_by_epoch_stage_shard_and_seed() -> None:
    plan = ShardPlan(**{**NUMBERS, "examples": 60})
    orders = [plan.batches(0, 1, e, frozenset()) for e in (0, 1)]
    assert orders[0] != orders[1]
    assert not torch.equal(plan.members(0), ShardPlan(**{**NUMBERS, "examples": 60, "seed": 1}).members(0))


@settings(max_examples=30)
@given(plans(), st.data())
def test_the_forecast_is_what_the_batches_hold(plan: ShardPlan, data: Any) -> None:
    before = frozenset(data.draw(st.sets(st.integers(0, plan.examples - 1), max_size=3)))
    ids = frozenset(data.draw(st.sets(st.integers(0, plan.examples - 1), max_size=3)))
    drawn = shards = 0
    for shard in range(plan.shards):
        again = False
        for stage, members in enumerate(plan.slices_of(shard)):
            again = again or bool((ids - before) & set(members.tolist()))
            epochs = range(plan.stage_epochs(stage)) if again else ()
            drawn += sum(len(b) for e in epochs for b in plan.batches(shard, stage, e, before | ids))
        shards += again
    cost = forecast(plan, ids, before)
    assert (cost.visits, cost.shards) == (drawn, shards)


def test_the_cost_of_one_example_of_equal_slices_with_many_epochs() -> None:
    plan = ShardPlan(examples=1000, shards=5, slices=5, epochs=300, batch_size=50, seed=0)
    shares = [forecast(plan, frozenset([j]), frozenset()).share for j in range(0, 1000, 10)]
    assert sum(shares) / len(shares) == pytest.approx(11 / (15 * 5), rel=0.05)


def test_what_was_forgotten_before_costs_nothing() -> None:
    plan = ShardPlan(**NUMBERS)
    member = int(plan.members(1)[0])
    assert forecast(plan, frozenset([member]), frozenset([member])).visits == 0
    fewer = forecast(plan, frozenset([int(plan.members(1)[-1])]), frozenset([member]))
    assert fewer.visits == plan.visits(1, {member, int(plan.members(1)[-1])}, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shards": 0}, "shards: expected at least 1, got 0"),
        ({"shards": 12}, "at least as many examples as slices, 24, got 23"),
        ({"slices": 4, "epochs": 2, "examples": 60}, "epochs: expected at least 3 for 4 slices"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ShardPlan(**{**NUMBERS, **changes})
