r"""The examples that each shard is trained on and their order: all that a sharded ensemble draws, from one seed.

One permutation of the ids is cut into :math:`S` shards and each shard into :math:`R` slices. Stage :math:`r` trains a
shard on its slices :math:`1 \ldots r` for :math:`\lfloor ra \rfloor - \lfloor (r-1)a \rfloor` epochs with
:math:`a = 2E/(R+1)`, so that the work is that of :math:`E` epochs however many slices there are (Bourtoule et al.
2021). The order is drawn over all members of a shard, and forgotten ones are skipped inside their batches: training
without them from the start and unlearning them later are one computation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The members, stages and batches of every shard.

    Args:
        examples: Length of the data set, ``N``.
        shards: ``S``, from 1 to ``N``.
        slices: Of each shard, ``R``, from 1 on.
        epochs: Passes over its shard that each member of the ensemble is trained for, ``E``, at least ``(R + 1) / 2``.
        batch_size: Examples per batch.
        seed: Of everything that is drawn.

    Raises:
        ConfigurationError: A number out of range, or fewer examples in a shard than slices.
    """

    examples: int
    shards: int
    slices: int
    epochs: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("examples", "shards", "slices", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigurationError(f"seed: expected at least 0, got {self.seed}")
        if self.shards * self.slices > self.examples:
            raise ConfigurationError(
                f"{self.shards} shards of {self.slices} slices: expected at least as many examples as slices, "
                f"{self.shards * self.slices}, got {self.examples}; take fewer shards or slices"
            )
        if 2 * self.epochs < self.slices + 1:
            raise ConfigurationError(
                f"epochs: expected at least {(self.slices + 2) // 2} for {self.slices} slices, so that every stage has "
                f"an epoch, got {self.epochs}; take more epochs or fewer slices"
            )

    def members(self, shard: int) -> Tensor:
        """Return the ids of a shard in the order of its slices, int64."""
        order = torch.randperm(self.examples, generator=torch.Generator().manual_seed(self.seed_of("shards")))
        return order.tensor_split(self.shards)[shard]

    def slices_of(self, shard: int) -> tuple[Tensor, ...]:
        """Return the ids of each slice of a shard."""
        return self.members(shard).tensor_split(self.slices)

    def shard_of(self) -> Tensor:
        """Return the shard that each example belongs to, int64 ``[N]``."""
        shards = torch.empty(self.examples, dtype=torch.int64)
        for shard in range(self.shards):
            shards[self.members(shard)] = shard
        return shards

    def stage_epochs(self, stage: int) -> int:
        """Return the number of epochs of a stage, at least 1; stages count from 0."""
        up_to = [r * 2 * self.epochs // (self.slices + 1) for r in (stage, stage + 1)]
        return up_to[1] - up_to[0]

    def kept(self, shard: int, stage: int, without: AbstractSet[int]) -> list[int]:
        """Return the ids that a stage trains on."""
        known = torch.cat(self.slices_of(shard)[: stage + 1]).tolist()
        return [j for j in known if j not in without]

    def batches(self, shard: int, stage: int, epoch: int, without: AbstractSet[int]) -> list[list[int]]:
        """Return the ids of each batch of one epoch of a stage.

        Batches of forgotten examples alone are left out. One of which a single example is left is joined to the one
        before it: batch normalisation cannot be trained on one example.
        """
        known = torch.cat(self.slices_of(shard)[: stage + 1])
        generator = torch.Generator().manual_seed(self.seed_of(shard, stage, epoch))
        order = known[torch.randperm(len(known), generator=generator)]
        batches: list[list[int]] = []
        for drawn in order.split(self.batch_size):
            batch = [j for j in drawn.tolist() if j not in without]
            if len(batch) == 1 and batches and self.batch_size > 1:
                batches[-1] += batch
            elif batch:
                batches.append(batch)
        return batches

    def first_stage(self, shard: int, ids: AbstractSet[int]) -> int | None:
        """Return the first stage that trains on one of some examples; ``None`` if the shard has none of them."""
        for stage, members in enumerate(self.slices_of(shard)):
            if not ids.isdisjoint(members.tolist()):
                return stage
        return None

    def visits(self, shard: int, without: AbstractSet[int], first: int = 0) -> int:
        """Return the number of example gradients that a shard takes from a stage on."""
        stages = range(first, self.slices)
        return sum(self.stage_epochs(r) * len(self.kept(shard, r, without)) for r in stages)

    def seed_of(self, *place: int | str) -> int:
        """Return a seed in ``[0, 2**32)`` of its own for every place: shard, stage, epoch."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *place)).encode()).digest()[:4], "big")

    def check_ids(self, ids: Sequence[int]) -> frozenset[int]:
        """Return ids as a set.

        Raises:
            ConfigurationError: One is not in the data set.
        """
        chosen = frozenset(int(j) for j in ids)
        wrong = sorted(j for j in chosen if not 0 <= j < self.examples)
        if wrong:
            raise ConfigurationError(
                f"ids: expected training ids in [0, {self.examples}), got {wrong[:5]}{'...' if len(wrong) > 5 else ''}"
            )
        return chosen
