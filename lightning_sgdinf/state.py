"""The state of a run: all that a training step reads and writes, as one value.

A state is parameters, buffers and the optimizer's own tensors together: BatchNorm's running statistics and Adam's
moments are as much part of the map ``s[t+1] = Phi_t(s[t], g_t)`` as the weights are.

A `Layout` maps a state to *flat buffers*, one vector per dtype, which is how it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sgdinf.dtypes import dtype_name

Part = Literal["param", "buffer", "optimizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Parameters, buffers and optimizer tensors at one moment of a run.

    Attributes:
        params: Trained parameters by their name in the module.
        buffers: All buffers of the module (persistent or not) by name.
        optimizer: Per parameter name, the optimizer's tensors by key, e.g. ``{"exp_avg": ..., "step": ...}``; a
            parameter without state (plain SGD, or before the first step) has no entry.
    """

    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def map(self, function: Any) -> ModelState:
        """Return the state with ``function`` applied to every tensor."""
        return ModelState(
            params={n: function(v) for n, v in self.params.items()},
            buffers={n: function(v) for n, v in self.buffers.items()},
            optimizer={n: {k: function(v) for k, v in s.items()} for n, s in self.optimizer.items()},
        )

    def clone(self) -> ModelState:
        """Return a detached copy that shares no memory with this one."""
        return self.map(lambda v: v.detach().clone())

    @property
    def nbytes(self) -> int:
        """Return the bytes of all its tensors."""
        return sum(v.numel() * v.element_size() for _, _, _, v in self.items())

    def items(self) -> Iterator[tuple[Part, str, str, Tensor]]:
        """Yield every tensor as ``(part, name, key, tensor)``; ``key`` is empty but for optimizer tensors."""
        for name, value in self.params.items():
            yield "param", name, "", value
        for name, value in self.buffers.items():
            yield "buffer", name, "", value
        for name, entries in self.optimizer.items():
            for key, value in entries.items():
                yield "optimizer", name, key, value


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, shape and dtype of one tensor of a state.

    Attributes:
        part: ``"param"``, ``"buffer"`` or ``"optimizer"``.
        name: Name of the parameter or buffer in the module.
        key: The optimizer's own key (``"exp_avg"``); empty for parameters and buffers.
        shape: Sizes.
        dtype: Name of the torch dtype without prefix, e.g. ``"float32"``; also the name of the flat buffer it is
            stored in.
    """

    part: Part
    name: str
    key: str = ""
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def label(self) -> str:
        """The name of the tensor in messages."""
        return f"{self.part} {self.name}" + (f" [{self.key}]" if self.key else "")


@dataclass(frozen=True, slots=True)
class Layout:
    """The order in which the tensors of a state lie in flat buffers.

    The tensors of one dtype are flattened (C order) and joined in the order of ``specs``; that vector is the flat
    buffer of the dtype. Flat buffers are passed on by dtype name, ``flat: Mapping[str, Tensor]``.

    Attributes:
        specs: Every tensor of the state, in the order of `ModelState.items`.
    """

    specs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, state: ModelState) -> Layout:
        """Return the layout of a state."""
        return cls(
            tuple(
                TensorSpec(part=part, name=name, key=key, shape=tuple(v.shape), dtype=dtype_name(v.dtype))
                for part, name, key, v in state.items()
            )
        )

    @property
    def buffer_sizes(self) -> dict[str, int]:
        """Number of elements of each flat buffer by dtype name, in order of first appearance."""
        sizes: dict[str, int] = {}
        for spec in self.specs:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
        return sizes

    def empty(self) -> dict[str, Tensor]:
        """Return fresh flat buffers on the CPU, uninitialised."""
        return {dtype: torch.empty(n, dtype=getattr(torch, dtype)) for dtype, n in self.buffer_sizes.items()}

    def pack(self, state: ModelState, flat: Mapping[str, Tensor]) -> None:
        """Copy a state into flat buffers made by `empty`; one gather and one transfer for each."""
        parts: dict[str, list[Tensor]] = {}
        for (_, _, _, value), spec in zip(state.items(), self.specs, strict=True):
            parts.setdefault(spec.dtype, []).append(value.detach().reshape(-1))
        for dtype, values in parts.items():
            if all(v.device.type == "cpu" for v in values):
                torch.cat(values, out=flat[dtype])
            else:
                flat[dtype].copy_(torch.cat([v.to(values[0].device) for v in values]))

    def unpack(self, flat: Mapping[str, Tensor]) -> ModelState:
        """Return the state whose tensors are views into the given flat buffers."""
        params: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {}
        offsets = dict.fromkeys(self.buffer_sizes, 0)
        for spec in self.specs:
            start = offsets[spec.dtype]
            offsets[spec.dtype] = start + spec.numel
            value = flat[spec.dtype][start : start + spec.numel].view(spec.shape)
            if spec.part == "param":
                params[spec.name] = value
            elif spec.part == "buffer":
                buffers[spec.name] = value
            else:
                optimizer.setdefault(spec.name, {})[spec.key] = value
        return ModelState(params=params, buffers=buffers, optimizer=optimizer)
