r"""The example that owns each row of a loss.

A loss function sees rows: of a classifier one per example, but also labelled tokens, nodes of graphs, boxes, two views
of each image, sequences with time before batch. The weight of example ``i`` is to multiply the gradient at its rows and
at no others, so it must be known which those are.

Running each example alone tells. In eval mode a loss without coupling gives an example the same row losses
alone as in any batch; so every row of the batch is matched with the row of equal loss among those of the examples
alone, and belongs to that example. Parameters are moved a little at random for that, so that rows of different examples
are not equal by chance (a head that starts at zero gives all of them the same loss). Rows without a match see other
examples (in-batch negatives, mixed inputs, statistics of the batch): they have no single owner.

Where every example of several batches has the same number of rows in the same regular order, that order is taken for
all batches with as many rows. Otherwise each batch is matched anew: ``B`` forward passes of one example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.kernels import Handler
from lightning_sgdinf.replay.losses import LOSSES, unreduced

Order = Literal["blocks", "strided", "shared"]
"""Regular orders of ``k`` rows per example: ``r // k`` (the rows of an example lie together), ``r % B``; or rows that
are the same for all examples, as of a penalty."""

NOBODY, EVERYBODY = -1, -2
"""Owners of a row that sees several examples, and of one that depends on none."""


@dataclass(frozen=True, slots=True)
class LossRows:
    """The rows of one call of a loss function, as ``InfluenceRunner(rows=...)`` is asked about them.

    Attributes:
        name: Of the function in ``torch.nn.functional``, such as ``"cross_entropy"``; ``"output"`` where weights enter
            at the output of a sub-module.
        shape: Of the loss before it is reduced, one element per row.
        call: Number of the call among those that the step makes, 0 the first.
    """

    name: str
    shape: tuple[int, ...]
    call: int


RowOwners: TypeAlias = Callable[[Any, LossRows], Tensor | None]
"""Is given a batch, as ``training_step`` gets it, and the rows of a loss; returns the place in the list of the batch's
drawn examples of each row's owner, -1 for a row that is no example's; or ``None`` to have them found out."""


def checked_owners(given: Any, loss: LossRows, count: int, step: int) -> Tensor:
    """Return owners that a user gave, in the shape of the rows; `EVERYBODY` for -1.

    Args:
        given: What the user's function returned.
        loss: What it was asked about.
        count: ``B``.
        step: Of the run.

    Raises:
        UntappedLossError: It is no whole number in ``-1 .. B - 1`` for each row.
    """
    rows = math.prod(loss.shape)
    fits = isinstance(given, Tensor) and not given.is_floating_point() and given.numel() == rows
    if not fits or (rows and not -1 <= int(given.min()) <= int(given.max()) < count):
        got = f"shape {list(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        if fits:
            got = f"numbers from {int(given.min())} to {int(given.max())}"
        raise UntappedLossError(
            f"step {step}: rows= must return one whole number for each of the {rows} rows of {loss.name} (call "
            f"{loss.call}, shape {list(loss.shape)}): the place of its owner among the {count} examples drawn for the "
            f"batch, 0 to {count - 1}, or -1; got {got}"
        )
    owner = given.reshape(loss.shape).long()
    return torch.where(owner < 0, torch.full_like(owner, EVERYBODY), owner)


@dataclass(frozen=True, slots=True)
class LossCall:
    """One call of a loss function.

    Attributes:
        name: Of the function.
        losses: Unreduced, float64, of any shape: one element per row.
        carries: False if it carries no gradient, as of a metric: then it does not matter whose its rows are.
    """

    name: str
    losses: Tensor
    carries: bool = True


class RowRecorder:
    """Keeps the unreduced values of every loss that is computed while its handlers are in force.

    Attributes:
        calls: So far.
    """

    def __init__(self) -> None:
        self.calls: list[LossCall] = []

    def handlers(self) -> Mapping[Callable[..., Any], Handler]:
        """Return handlers for an `Interceptor`."""
        return dict.fromkeys(LOSSES, self._handle)

    def apply(self, value: Any) -> Any:
        """Record an output whose rows are examples', in place of a loss: a projection of each row."""
        if isinstance(value, Tensor) and value.requires_grad and value.ndim:
            rows = value.detach().double().reshape(len(value), -1)
            self.calls.append(LossCall("output", rows @ torch.linspace(1, 2, rows.shape[1], dtype=torch.float64)))
        return value

    def _handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        with torch.no_grad():
            losses = unreduced(func, args, kwargs).detach().double()
        self.calls.append(LossCall(func.__name__, losses, any(a.requires_grad for a in tensors)))
        return func(*args, **kwargs)


def match_rows(batch: Sequence[LossCall], alone: Sequence[Sequence[LossCall]], *, rtol: float) -> list[Tensor]:
    """Return the owner of every row of every call, int64 in the shape of its losses; `NOBODY` where there is none.

    Args:
        batch: Calls of the whole batch.
        alone: Calls of each of its examples alone.
        rtol: Relative difference of losses that are taken for equal.
    """
    owners = [torch.full(call.losses.shape, NOBODY) for call in batch]
    for name in {call.name for call in batch}:
        mine = [[c.losses.reshape(-1) for c in calls if c.name == name] for calls in alone]
        places = [k for k, call in enumerate(batch) if call.name == name]
        calls = [batch[k].losses.reshape(-1) for k in places]
        shared = [k for k, losses in zip(places, calls, strict=True) if _is_shared(losses, calls, mine, rtol)]
        for k in shared:
            owners[k].fill_(EVERYBODY)
            mine = [_without(parts, batch[k].losses.reshape(-1), rtol) for parts in mine]
        places = [k for k in places if k not in shared]
        values = [torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64) for parts in mine]
        if not places or not sum(map(len, values)):
            continue
        sizes = [batch[k].losses.numel() for k in places]
        rows = torch.cat([batch[k].losses.reshape(-1) for k in places])
        owner = _regular(rows, sizes, values, rtol)
        if owner is None:
            who = torch.repeat_interleave(torch.arange(len(values)), torch.tensor([len(v) for v in values]))
            owner = _match(rows, torch.cat(values), who, rtol)
        for k, part in zip(places, owner.split(sizes), strict=True):
            owners[k] = part.view(batch[k].losses.shape)
    return owners


def regular_owners(
    batch: Sequence[LossCall], alone: Sequence[Sequence[LossCall]], places: Sequence[int], count: int, *, rtol: float
) -> list[Tensor] | None:
    """Return the owners of every row of every call, if the rows of a sample are where a regular order has them.

    Args:
        batch: Calls of the whole batch.
        alone: Calls of some of its examples alone.
        places: Of these in the batch.
        count: ``B``.
        rtol: Relative difference of losses that are taken for equal.
    """
    owners = []
    for number, call in enumerate(batch):
        rows = call.losses.reshape(-1)
        own = [calls[number].losses.reshape(-1) for calls in alone if len(calls) == len(batch)]
        if len(own) < len(places) or len(rows) % count or any(len(rows) != count * len(part) for part in own):
            return None
        for order in ("blocks", "strided"):
            owner = owners_in(order, len(rows), count)
            if all(_same(rows[owner == p], part, rtol) for p, part in zip(places, own, strict=True)):
                owners.append(owner.view(call.losses.shape))
                break
        else:
            return None
    return owners


def are_alike(alone: Sequence[Sequence[LossCall]], *, rtol: float) -> bool:
    """Return true if rows of two examples have equal losses, so that it is not certain whose is whose."""
    for name in {call.name for calls in alone for call in calls}:
        parts = [(c.losses.reshape(-1), i) for i, calls in enumerate(alone) for c in calls if c.name == name]
        values, order = torch.cat([v for v, _ in parts]).sort()
        who = torch.cat([torch.full((len(v),), i) for v, i in parts])[order]
        near = values.diff() <= rtol * (1 + values[1:].abs())
        if bool((near & (who.diff() != 0)).any()):
            return True
    return False


def _is_shared(losses: Tensor, calls: Sequence[Tensor], alone: Sequence[Sequence[Tensor]], rtol: float) -> bool:
    """Return true if a call is made as often, with the same losses, whichever the examples are."""
    often = sum(_same(losses, other, rtol) for other in calls)
    return len(alone) > 1 and all(sum(_same(losses, other, rtol) for other in parts) == often for parts in alone)


def _without(parts: Sequence[Tensor], losses: Tensor, rtol: float) -> list[Tensor]:
    return [part for part in parts if not _same(losses, part, rtol)]


def _regular(rows: Tensor, sizes: Sequence[int], values: Sequence[Tensor], rtol: float) -> Tensor | None:
    """Return the owners in the regular order that fits: rows of equal examples do not tell it, and rounding would."""
    count = len(values)
    if any(size % count for size in sizes):
        return None
    for order in ("blocks", "strided"):
        owner = torch.cat([owners_in(order, size, count) for size in sizes])
        if all(_equal(rows[owner == i], values[i], rtol) for i in range(count)):
            return owner
    return None


def _match(rows: Tensor, values: Tensor, who: Tensor, rtol: float) -> Tensor:
    owner = torch.full((len(rows),), NOBODY)
    if _equal(rows, values, rtol):
        owner[rows.argsort(stable=True)] = who[values.argsort(stable=True)]
        return owner
    free = torch.ones(len(values), dtype=torch.bool)
    for row in range(len(rows)):  # some rows see other examples: match those that do not
        gaps = (values - rows[row]).abs().masked_fill(~free, torch.inf).nan_to_num(torch.inf)
        if len(gaps) and gaps.min() <= rtol * (1 + rows[row].abs()):
            nearest = int(gaps.argmin())
            owner[row], free[nearest] = who[nearest], False
    return owner


def _same(losses: Tensor, others: Tensor, rtol: float) -> bool:
    """Return true if two calls have the same losses, in the same order."""
    return losses.shape == others.shape and torch.allclose(losses, others, rtol=rtol, atol=rtol, equal_nan=True)


def _equal(rows: Tensor, values: Tensor, rtol: float) -> bool:
    """Return true if two sets of losses are the same."""
    if len(rows) != len(values):
        return False
    return torch.allclose(rows.sort().values, values.sort().values, rtol=rtol, atol=rtol, equal_nan=True)


def regular_order(owner: Tensor, count: int) -> Order | None:
    """Return the regular order that owners are in; ``None`` if they are in none.

    Args:
        owner: Of each row, int64.
        count: ``B``.
    """
    flat = owner.reshape(-1)
    if not count or not len(flat) or len(flat) % count:
        return None
    for order in ("blocks", "strided"):
        if torch.equal(flat, owners_in(order, len(flat), count)):
            return order
    return None


def owners_in(order: Order, rows: int, count: int) -> Tensor:
    """Return the owner of each of ``rows`` rows in a regular order, int64."""
    if order == "shared":
        return torch.full((rows,), EVERYBODY)
    place = torch.arange(rows)
    return place // (rows // count) if order == "blocks" else place % count


CONFIRMED = 3
"""Steps that must show the same regular order before it is taken for granted: one batch may be regular by chance."""


@dataclass(slots=True)
class RowOrders:
    """The regular orders that a run's losses have been seen in.

    Attributes:
        orders: Rows per example and their order, by number and name of the call; ``None`` where there is no such order.
        seen: Steps that showed the order, by number and name of the call.
        coupled: Losses that had rows without a single owner, which were given one by their place: name, and a step.
        unverified: Names of losses whose rows were said to be somebody's and could not be matched.
        verified: How many passes' given owners were compared with matched ones.
        last: The pass that was matched last, the checksum of the parameters it was matched at, the owners of its rows.
    """

    orders: dict[tuple[int, str], tuple[int, Order] | None] = field(default_factory=dict)
    seen: dict[tuple[int, str], set[int]] = field(default_factory=dict)
    coupled: dict[str, int] = field(default_factory=dict)
    unverified: set[str] = field(default_factory=set)
    verified: int = 0
    last: tuple[object, int, list[Tensor]] | None = None

    def copy(self) -> RowOrders:
        """Return the same, to learn from there separately."""
        return replace(
            self,
            orders=dict(self.orders),
            seen={key: set(steps) for key, steps in self.seen.items()},
            coupled=dict(self.coupled),
            unverified=set(self.unverified),
        )

    def known(self, call: int, name: str, rows: int, count: int) -> Tensor | None:
        """Return the owners of a call's rows, if they are known; ``None`` if they must be matched.

        Args:
            call: Its number in the step.
            name: Of the function.
            rows: How many rows it has.
            count: ``B``.
        """
        regular = self.orders.get((call, name))
        if regular is None or len(self.seen[call, name]) < CONFIRMED:
            return None
        if rows != regular[0] * (1 if regular[1] == "shared" else count):
            return None
        return owners_in(regular[1], rows, count)

    @property
    def undecided(self) -> bool:
        """Return true while there are orders that too few steps have shown to be taken for granted."""
        return any(order and len(self.seen[key]) < CONFIRMED for key, order in self.orders.items())

    @property
    def settled(self) -> bool:
        """Return true if every loss seen so far has a regular order that is taken for granted."""
        return not self.undecided and None not in self.orders.values()

    def learn(self, calls: Sequence[LossCall], owners: Sequence[Tensor], count: int, *, step: int) -> None:
        """Take note of the owners that were matched in one batch of a step."""
        if count < 2:
            return  # of one example the rows are in any order
        for number, (call, owner) in enumerate(zip(calls, owners, strict=True)):
            key = (number, call.name)
            order: Order | None = "shared" if bool((owner == EVERYBODY).all()) else regular_order(owner, count)
            seen = None if order is None else (owner.numel() if order == "shared" else owner.numel() // count, order)
            self.orders[key] = seen if self.orders.get(key, seen) == seen else None
            self.seen.setdefault(key, set()).add(step)
