"""Tensors of a module that nothing trains: not written down, but known again by a digest of each.

A digest is of the values in the dtype they had in training, so that it does not matter in which one a module is made or
given later, as long as its values are the same there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.log.bit_patterns import is_recordable
from lightning_sgdinf.log.records import Json

CONSTANTS = "constants"
"""Member of `Header.extra`: name, dtype and digest of each constant."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that stays what it is.

    Attributes:
        name: In the module.
        dtype: Name of the dtype it had in training.
        digest: Of its values in that dtype.
    """

    name: str
    dtype: str
    digest: int

    @classmethod
    def of(cls, name: str, value: Tensor) -> Constant:
        """Return a tensor's constant."""
        return cls(name, dtype_name(value.dtype), tensor_digest(value))

    def is_that_of(self, value: Tensor) -> bool:
        """Tell if a tensor has these values, whatever its dtype."""
        dtype = getattr(torch, self.dtype)
        return tensor_digest(value if value.dtype == dtype or value.is_quantized else value.to(dtype)) == self.digest


def constants_of(module: nn.Module, state: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of a module that are no part of its recorded state, by name.

    Args:
        module: The module.
        state: Names of the parameters in the state; of buffers all are that a log can hold.
    """
    parameters = {n: p for n, p in module.named_parameters() if n not in state}
    return parameters | {n: b for n, b in module.named_buffers() if not is_recordable(b)}


def constants_document(constants: Iterable[Constant]) -> dict[str, Json]:
    """Return what a header's extra members tell of constants."""
    return {CONSTANTS: [[c.name, c.dtype, c.digest] for c in constants]}


def recorded_constants(extra: Mapping[str, Any]) -> tuple[Constant, ...] | None:
    """Return the constants that a header tells of; ``None`` if it does not."""
    document = extra.get(CONSTANTS)
    return tuple(Constant(*entry) for entry in document) if isinstance(document, list) else None


def tensor_digest(value: Tensor) -> int:
    """Return the digest of a tensor of any kind; a sparse one is not made dense."""
    value = value.detach()
    if value.is_meta:
        return 0
    if value.is_quantized:
        return batch_digest([value.int_repr(), str(value.qscheme()), value.dequantize()])
    if value.layout is torch.sparse_coo:
        value = value.coalesce()
        return batch_digest([tuple(value.shape), value.indices(), value.values()])
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return batch_digest([tuple(value.shape), value.crow_indices(), value.col_indices(), value.values()])
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return batch_digest([tuple(value.shape), value.ccol_indices(), value.row_indices(), value.values()])
    return batch_digest(value)
