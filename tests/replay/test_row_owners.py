"""Rows are matched with the examples that have them alone, whatever their order and number."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_sgdinf.replay.row_owners import (
    CONFIRMED,
    EVERYBODY,
    NOBODY,
    LossCall,
    Order,
    RowOrders,
    match_rows,
    owners_in,
    regular_order,
)

RTOL = 1e-9
ROUNDING = 1e-12
seeds = st.integers(0, 10_000)
ragged = st.lists(st.integers(0, 4), min_size=2, max_size=7).filter(lambda lengths: sum(lengths) > 0)


def call(*losses: float | Tensor, name: str = "mse_loss") -> LossCall:
    return LossCall(name, torch.as_tensor(losses if not isinstance(losses[0], Tensor) else losses[0]).double())


def distinct(count: int, seed: int) -> Tensor:
    """Losses no two of which are close, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).double() + 0.3 * torch.rand(count, generator=generator).double()


def shuffled(lengths: Sequence[int], seed: int) -> Tensor:
    """Owners of rows in random order, ``lengths[i]`` of example ``i``."""
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return owners[torch.randperm(len(owners), generator=torch.Generator().manual_seed(seed))]


def alone_of(losses: Tensor, owners: Tensor, count: int, name: str = "mse_loss") -> list[list[LossCall]]:
    """Calls of each example alone; none of an example without rows. Rounded otherwise than in the batch."""
    parts = [losses[owners == i] * (1 + ROUNDING) for i in range(count)]
    return [[call(part, name=name)] if len(part) else [] for part in parts]


@given(lengths=ragged, seed=seeds)
def test_every_row_finds_its_owner(lengths: list[int], seed: int) -> None:
    owners, losses = shuffled(lengths, seed), distinct(sum(lengths), seed)
    (matched,) = match_rows([call(losses)], alone_of(losses, owners, len(lengths)), rtol=RTOL)
    assert torch.equal(matched, owners)


@given(lengths=ragged, seed=seeds)
def test_rows_that_are_not_alone_are_nobodys_and_the_others_still_find_theirs(lengths: list[int], seed: int) -> None:
    owners, losses = shuffled(lengths, seed), distinct(sum(lengths), seed)
    alone = alone_of(losses, owners, len(lengths))
    coupled = torch.arange(len(losses)) % 3 == 0
    (matched,) = match_rows([call(torch.where(coupled, losses + 100, losses))], alone, rtol=RTOL)
    assert torch.equal(matched, torch.where(coupled, NOBODY, owners))


@given(lengths=ragged, seed=seeds, cuts=st.integers(1, 3))
def test_rows_of_several_calls_of_one_name(lengths: list[int], seed: int, cuts: int) -> None:
    owners, losses = shuffled(lengths, seed), distinct(sum(lengths), seed)
    calls = [call(part) for part in losses.tensor_split(cuts) if len(part)]
    matched = match_rows(calls, alone_of(losses, owners, len(lengths)), rtol=RTOL)
    assert torch.equal(torch.cat(matched), owners)


@given(lengths=ragged, seed=seeds)
def test_a_loss_that_all_examples_have_alike_is_everybodys_beside_another_of_its_name(
    lengths: list[int], seed: int
) -> None:
    owners, losses = shuffled(lengths, seed), distinct(sum(lengths), seed)
    penalty = call(-1.0 - distinct(5, seed + 1))
    alone = [[penalty, *calls] for calls in alone_of(losses, owners, len(lengths))]
    data, rest = match_rows([call(losses), penalty], alone, rtol=RTOL)
    assert torch.equal(data, owners)
    assert bool((rest == EVERYBODY).all())


@given(count=st.integers(3, 6), each=st.integers(1, 4), order=st.sampled_from(["blocks", "strided"]), seed=seeds)
def test_equal_examples_keep_their_places(count: int, each: int, order: Order, seed: int) -> None:
    """Two examples of the batch are the same; the others tell which order it is in."""
    owners = owners_in(order, count * each, count)
    per_example = distinct(count, seed).repeat_interleave(torch.tensor([2] + [1] * (count - 1)))[:count]
    rows = per_example[owners]
    noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)).double()
    alone = alone_of(rows, owners, count)
    (matched,) = match_rows([call(rows * (1 + ROUNDING * noise))], alone, rtol=RTOL)
    assert torch.equal(matched, owners)


def test_equal_examples_in_calls_of_their_own_are_no_penalty() -> None:
    calls = [call(torch.tensor(2.0)), call(torch.tensor(2.0))]
    assert [int(owner) for owner in match_rows(calls, [[calls[0]], [calls[1]]], rtol=RTOL)] == [0, 1]


def test_owners_have_the_shape_of_their_losses() -> None:
    losses = torch.arange(6.0).view(3, 2)
    alone = [[call(losses[:, i])] for i in range(2)]
    (matched,) = match_rows([call(losses)], alone, rtol=RTOL)
    assert torch.equal(matched, torch.tensor([[0, 1]] * 3))


def test_names_are_told_apart() -> None:
    batch = [call(1.0, 2.0), call(2.0, 1.0, name="l1_loss")]
    alone = [[call(1.0), call(1.0, name="l1_loss")], [call(2.0), call(2.0, name="l1_loss")]]
    assert [owner.tolist() for owner in match_rows(batch, alone, rtol=RTOL)] == [[0, 1], [1, 0]]


def test_a_loss_that_no_example_has_alone_is_nobodys() -> None:
    (matched,) = match_rows([call(1.0, 2.0)], [[], []], rtol=RTOL)
    assert matched.tolist() == [NOBODY, NOBODY]


# Regular orders -------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 6), each=st.integers(1, 4))
def test_regular_orders_by_their_definition(count: int, each: int) -> None:
    blocks = [i for i in range(count) for _ in range(each)]
    strided = [i for _ in range(each) for i in range(count)]
    assert owners_in("blocks", count * each, count).tolist() == blocks
    assert owners_in("strided", count * each, count).tolist() == strided
    assert regular_order(torch.tensor(blocks), count) == "blocks"
    assert regular_order(torch.tensor(strided), count) == ("blocks" if blocks == strided else "strided")


@given(lengths=ragged, seed=seeds)
def test_an_order_is_regular_only_if_it_is_one_of_the_two(lengths: list[int], seed: int) -> None:
    owners, count = shuffled(lengths, seed), len(lengths)
    order = regular_order(owners, count)
    fits = {name for name in ("blocks", "strided") if owners.tolist() == _by_definition(name, len(owners), count)}
    assert (order in fits) if fits else order is None


def _by_definition(order: str, rows: int, count: int) -> list[int] | None:
    if rows % count:
        return None
    return [r // (rows // count) if order == "blocks" else r % count for r in range(rows)]


@pytest.mark.parametrize(("owners", "count"), [([], 3), ([0, 1], 0), ([0, 0, 1], 2)])
def test_orders_of_nothing_and_of_odd_numbers(owners: list[int], count: int) -> None:
    assert regular_order(torch.tensor(owners, dtype=torch.int64), count) is None


def learned(*batches: Tensor, count: int = 4) -> RowOrders:
    orders = RowOrders()
    for step, owners in enumerate(batches):
        orders.learn([call(torch.zeros(len(owners)))], [owners], count, step=step)
    return orders


@given(each=st.integers(1, 4), count=st.integers(2, 6), order=st.sampled_from(["blocks", "strided"]))
def test_an_order_that_enough_steps_have_shown_holds_for_batches_of_any_size(
    each: int, count: int, order: Order
) -> None:
    owners = owners_in(order, 4 * each, 4)
    few, enough = learned(*[owners] * (CONFIRMED - 1)), learned(*[owners] * CONFIRMED)
    assert few.undecided
    assert few.known(0, "mse_loss", count * each, count) is None
    assert not enough.undecided
    known = enough.known(0, "mse_loss", count * each, count)
    assert known is not None
    assert known.tolist() == _by_definition("blocks" if each == 1 else order, count * each, count)


def test_one_step_seen_often_is_one_step() -> None:
    orders = RowOrders()
    for _ in range(2 * CONFIRMED):
        orders.learn([call(torch.zeros(4))], [torch.arange(4)], 4, step=7)
    assert orders.known(0, "mse_loss", 4, 4) is None


def test_only_what_was_seen_is_known() -> None:
    orders = learned(*[torch.arange(4)] * CONFIRMED)
    assert orders.known(0, "mse_loss", 5, 4) is None
    assert orders.known(1, "mse_loss", 4, 4) is None
    assert orders.known(0, "l1_loss", 4, 4) is None


@given(place=st.integers(0, CONFIRMED), seed=seeds)
def test_a_single_irregular_batch_ends_it_for_good(place: int, seed: int) -> None:
    regular, irregular = torch.arange(4).repeat_interleave(2), torch.tensor([0, 1, 1, 1, 1, 2, 2, 3])
    batches = [regular] * (2 * CONFIRMED)
    orders = learned(*batches[:place], irregular, *batches[place:])
    assert orders.known(0, "mse_loss", 8, 4) is None
    assert not orders.undecided


def test_batches_of_one_teach_nothing() -> None:
    orders = learned(*[torch.zeros(3, dtype=torch.int64)] * CONFIRMED, count=1)
    assert orders.known(0, "mse_loss", 3, 1) is None
    assert not orders.undecided


def test_rows_of_everybody_are_as_many_in_any_batch() -> None:
    orders = learned(*[torch.full((6,), EVERYBODY)] * CONFIRMED)
    known = orders.known(0, "mse_loss", 6, 3)
    assert known is not None
    assert known.tolist() == [EVERYBODY] * 6
    assert orders.known(0, "mse_loss", 9, 3) is None
