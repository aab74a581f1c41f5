"""The tensors of a module and the optimizer's parameters, and where they lie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf.log import is_recordable


@dataclass(frozen=True, slots=True)
class Structure:
    """The places of a module's state, as they were when they were looked up.

    Attributes:
        params: Parameters of the state by name, in the module's order.
        names: Their names by ``id``.
        foreign: Number of parameters that the optimizer holds and the module does not.
        modules: Sub-modules by name.
        buffers: Name of each buffer that a log can hold, the dict that holds it, and its key there.
        places: The dict that holds each parameter, and its key there.
        members: The dicts of all sub-modules.
        sizes: Of these, and of the optimizer's groups.
    """

    params: dict[str, nn.Parameter]
    names: dict[int, str]
    foreign: int
    modules: list[tuple[str, nn.Module]]
    buffers: list[tuple[str, dict[str, Tensor | None], str]]
    places: list[tuple[dict[str, Any], str, nn.Parameter]]
    members: list[dict[str, Any]]
    sizes: list[int]

    @classmethod
    def of(cls, module: nn.Module, optimizer: torch.optim.Optimizer, included: Collection[str]) -> Structure:
        """Look up the places.

        Args:
            module: The LightningModule.
            optimizer: Trains it.
            included: Names of parameters that are part of the state whether the optimizer holds them or not.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        params = {n: p for n, p in module.named_parameters() if id(p) in held or n in included}
        names = {id(p): name for name, p in params.items()}
        modules = list(module.named_modules())
        owners = dict(modules)
        members: list[dict[str, Any]] = [part for _, m in modules for part in (m._parameters, m._buffers, m._modules)]
        places = [(owners[owner]._parameters, key, params[n]) for n in params for owner, _, key in (n.rpartition("."),)]
        return cls(
            params=params,
            names=names,
            foreign=len(held - names.keys()),
            modules=modules,
            buffers=[
                (n, owners[owner]._buffers, key)
                for n, b in module.named_buffers()
                if is_recordable(b)
                for owner, _, key in (n.rpartition("."),)
            ],
            places=places,
            members=members,
            sizes=_sizes(members, optimizer),
        )

    def is_that_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell if module and optimizer still hold the same parameters, and as many of everything else."""
        same = self.sizes == _sizes(self.members, optimizer)
        return same and all(owner.get(key) is p for owner, key, p in self.places)


def _sizes(members: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> list[int]:
    return [*map(len, members), *(len(group["params"]) for group in optimizer.param_groups)]
