"""Batches that are objects: what is in their slots counts, what they name does not go in circles."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.log.batch_digest import batch_digest


class Kind(enum.Enum):
    NODE = "node"
    EDGE = "edge"


@dataclass(slots=True)
class Described:
    x: Tensor
    kind: Kind = Kind.NODE
    made_by: Any = field(default=Kind)


class Store(Described):
    """Has slots of its base and attributes of its own."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, made_by=Described)
        self.y = x + 1


def test_slots_count() -> None:
    x = torch.arange(3.0)
    assert batch_digest(Described(x)) == batch_digest(Described(x.clone()))
    assert batch_digest(Described(x)) != batch_digest(Described(x + 1))
    assert batch_digest(Described(x)) != batch_digest(Described(x, Kind.EDGE))
    assert batch_digest(Store(x)) == batch_digest(Store(x.clone()))
    other = Store(x)
    other.x = x + 1
    assert batch_digest(Store(x)) != batch_digest(other)


def test_classes_that_lead_back_to_themselves_are_names() -> None:
    assert batch_digest((Described, Kind, len, test_slots_count)) == batch_digest(
        (Described, Kind, len, test_slots_count)
    )
    assert batch_digest(Described) != batch_digest(Kind)
