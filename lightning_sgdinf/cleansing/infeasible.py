"""Removals that leave too little to train on: no example at all, or none of a class."""

from __future__ import annotations

import warnings
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError

OnExcess: TypeAlias = Literal["refuse", "warn"]
"""Treatment of them: ``"refuse"`` raises an error; ``"warn"`` warns, cuts a number of removals to what leaves one
example, and lets a class go."""


class InfeasibleWarning(UserWarning):
    """More was to be removed than can be, or a class is gone."""


class InfeasibleError(ConfigurationError):
    """More is to be removed than can be, or a class would be gone."""


def report_infeasible(message: str, on_excess: OnExcess) -> None:
    """Say that too much is to be removed.

    Raises:
        InfeasibleError: If that is refused.
        ConfigurationError: ``on_excess`` is neither ``"refuse"`` nor ``"warn"``.
    """
    if on_excess not in ("refuse", "warn"):
        raise ConfigurationError(f"on_excess: expected 'refuse' or 'warn', got {on_excess!r}")
    if on_excess == "refuse":
        way_out = "take fewer, or on_excess='warn' (on the command line on_excess=warn) to go on with a warning"
        raise InfeasibleError(f"{message}; {way_out}.")
    warnings.warn(f"{message}.", InfeasibleWarning, stacklevel=3)


def lost_classes(labels: Tensor, drop: tuple[int, ...], relabel: dict[int, int]) -> list[int]:
    """Return the classes that have examples before a selection and none after it.

    Args:
        labels: Given classes ``[N]``.
        drop: Ids that are left out.
        relabel: Id to its new class.
    """
    after = labels.clone()
    if relabel:
        after[list(relabel)] = torch.tensor(list(relabel.values()), dtype=labels.dtype, device=labels.device)
    keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    keep[list(drop)] = False
    return sorted(set(labels.tolist()) - set(after[keep].tolist()))
