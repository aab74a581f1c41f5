"""The loaders of a fit, looked up as a Trainer looks them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_sgdinf.errors import ConfigurationError, UnsupportedRunError
from lightning_sgdinf.log import Header
from lightning_sgdinf.replay.loader_forms import by_item, is_stream, read_stream, takes_lists


def given_data(train_dataloaders: Any, datamodule: Any) -> tuple[Any, Any]:
    """Return training loaders and data module, where the latter may come in the place of the former, as in a fit."""
    if datamodule is None and hasattr(train_dataloaders, "train_dataloader") and hasattr(train_dataloaders, "setup"):
        return None, train_dataloaders
    return train_dataloaders, datamodule


def training_loaders(model: Any, train_dataloaders: Any, datamodule: Any) -> list[DataLoader[Any]]:
    """Return the training loaders, as given, from the data module, or from the model.

    Raises:
        ConfigurationError: If there are none, or both loaders and a data module were given.
        UnsupportedRunError: If one has no map-style data set.
    """
    loaders = _resolve(model, train_dataloaders, datamodule, "train_dataloader", "train_dataloaders")
    if not loaders:
        raise ConfigurationError(
            "no training data: pass train_dataloaders or a datamodule, as to Trainer.fit; scores are per training "
            "example"
        )
    for loader in loaders:
        if not hasattr(loader, "dataset") or isinstance(loader.dataset, IterableDataset):
            raise UnsupportedRunError(
                f"the training loader {type(loader).__name__} has no map-style data set, so its examples have no ids "
                "to score; wrap the examples in a torch.utils.data.Dataset with __getitem__ and __len__, or record the "
                "run with TrajectoryRecorder(store_batches=True)"
            )
    return loaders


def stored_run_loaders(train_dataloaders: Any, header: Header) -> list[DataLoader[Any]]:
    """Return the given training loaders if examples can be looked up in them, else none: the log holds the batches."""
    loaders = _flat(train_dataloaders)
    indexed = [length >= 0 for _, length in header.datasets]
    usable = all(hasattr(getattr(loader, "dataset", None), "__len__") for loader in loaders)
    return loaders if usable and indexed == [True] * len(loaders) else []


def validation_loader(
    model: Any, val_dataloaders: Any, datamodule: Any, number: int | None = None, limit: float = math.inf
) -> DataLoader[Any]:
    """Return the validation loader.

    Args:
        model: The LightningModule.
        val_dataloaders: As given.
        datamodule: As given.
        number: Of the loader, where there are several.
        limit: How many batches to read of one that is a stream.

    Raises:
        ConfigurationError: If there are several and it is not said which, if there is none, or if it is no loader.
    """
    loaders = _resolve(model, val_dataloaders, datamodule, "val_dataloader", "val_dataloaders")
    if len(loaders) > 1 and number is not None:
        if not 0 <= number < len(loaders):
            raise ConfigurationError(f"val_loader={number}: expected a number from 0 to {len(loaders) - 1}")
        loaders = [loaders[number]]
    if len(loaders) != 1:
        which = "say which, InfluenceRunner(val_loader=0), or " if loaders else ""
        raise ConfigurationError(
            f"expected one validation loader to ask the model about, got {len(loaders)}; {which}pass the one to use as "
            "val_dataloaders"
        )
    loader = loaders[0]
    if is_stream(loader):
        return read_stream(loader, limit)
    if not hasattr(loader, "dataset"):
        raise ConfigurationError(
            f"the validation loader, a {type(loader).__name__}, gives no batches; pass the DataLoader that the fit had"
        )
    return by_item(loader) if takes_lists(loader) else loader


def validation_batches(header: Header, number: int | None = None) -> float:
    """Return how many batches a validation of the run had, as far as its record says; ``inf`` if it does not.

    Args:
        header: Of the record.
        number: Of the loader, where there are several.
    """
    facts = header.extra.get("trainer")
    known = facts.get("num_val_batches") if isinstance(facts, dict) else None
    place = number or 0
    count = known[place] if isinstance(known, list) and place < len(known) else None
    return count if isinstance(count, (int, float)) else math.inf


def _resolve(model: Any, given: Any, datamodule: Any, hook: str, argument: str) -> list[Any]:
    if given is not None and datamodule is not None and hook == "train_dataloader":
        raise ConfigurationError(f"got both {argument} and a datamodule; pass one of them, as to Trainer.fit")
    if given is None and datamodule is not None:
        given = getattr(datamodule, hook)() if _overrides(datamodule, hook) else None
    elif given is None and _overrides(model, hook):
        given = getattr(model, hook)()
    return _flat(given)


def _flat(loaders: Any) -> list[Any]:
    if loaders is None:
        return []
    if isinstance(loaders, CombinedLoader):
        return list(loaders.flattened)
    if isinstance(loaders, dict):
        return [one for value in loaders.values() for one in _flat(value)]
    if isinstance(loaders, Sequence) and not isinstance(loaders, (str, bytes)):
        return [one for value in loaders for one in _flat(value)]
    return [loaders]


def _overrides(model: Any, hook: str) -> bool:
    method = getattr(type(model), hook, None)
    return method is not None and not method.__module__.startswith(("lightning.", "pytorch_lightning."))
