"""The objects that the job for a module of the caller's is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning import LightningDataModule, LightningModule

from lightning_sgdinf.studies.pipeline import MainParts

IGNORED_GROUPS: Mapping[str, str] = {
    "optimizer": "the LightningModule has its own configure_optimizers; what is to vary is an argument of the module",
    "noise": "labels are the data module's own",
}
"""Groups of the configuration that this job does not read, with what to use in their place."""


@dataclass(frozen=True, kw_only=True)
class ModuleParts(MainParts):
    """The objects that the job for a module of the caller's is made of.

    The effect of cleansing is measured by the query; by its first scalar, if it has several.

    Attributes:
        data: Training and validation data; test data, too, if it has any.
    """

    data: LightningDataModule

    @property
    def groups_read(self) -> dict[str, str]:
        """Return which file of each configuration group was taken, but for groups that this job does not read."""
        return {group: choice for group, choice in self.choices.items() if group not in IGNORED_GROUPS}


def is_data_module(data: Any) -> bool:
    """Tell if something is a LightningDataModule."""
    return isinstance(data, LightningDataModule)


def is_lightning_module(model: Any) -> bool:
    """Tell if something is a LightningModule."""
    return isinstance(model, LightningModule)
