"""Work on what a caller lends, and give it back as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from lightning_sgdinf import random_state


def copy_of_module(model: nn.Module) -> Any:
    """Return a copy of a LightningModule that belongs to no Trainer."""
    owned = {name: model.__dict__.get(name) for name in ("_trainer", "_fabric")}
    memo: dict[int, Any] = {id(owner): None for owner in owned.values() if owner is not None}
    return copy.deepcopy(model, memo)


def copy_of_data_module(datamodule: Any) -> Any:
    """Return a copy of a data module that shares its data and belongs to no Trainer; ``None`` of ``None``."""
    if datamodule is None:
        return None
    shared = copy.copy(datamodule)
    if "trainer" in vars(shared):
        shared.trainer = None
    return shared


def brings(model: Any, loader: str) -> bool:
    """Tell if a LightningModule has a loader of its own; ``loader`` is the name of the method."""
    method = getattr(type(model), loader, None)
    return method is not None and not method.__module__.startswith(("lightning.pytorch", "pytorch_lightning"))


@contextmanager
def left_as_found(*lent: Any) -> Iterator[None]:
    """Give back as they were: the global random generators, and those that loaders, their samplers, data sets and data
    modules hold; of samplers, every attribute.

    Args:
        lent: Loaders in any nesting, and data modules.
    """
    with ExitStack() as stack:
        stack.enter_context(random_state.preserved())
        for thing in _parts(lent):
            attributes = getattr(thing, "__dict__", {})
            for generator in attributes.values():
                stack.enter_context(_rewound(generator))
            if isinstance(thing, torch.utils.data.Sampler):
                stack.callback(attributes.update, dict(attributes))
            if attributes.get("_iterator", thing) is None:  # of a loader with workers that stay
                stack.callback(attributes.update, {"_iterator": None})
        yield


def _parts(lent: Any) -> Iterator[Any]:
    """Yield loaders, samplers, data sets and data modules, each once."""
    waiting, seen = [*tree_flatten(list(lent))[0]], set()
    while waiting:
        thing = waiting.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        for name in ("dataset", "datasets", "sampler", "batch_sampler", "iterables", "data_source"):
            waiting += tree_flatten([getattr(thing, "__dict__", {}).get(name)])[0]


@contextmanager
def _rewound(generator: Any) -> Iterator[None]:
    """Set a random generator back afterwards; anything else is left alone."""
    if isinstance(generator, torch.Generator):
        before = generator.get_state()
        yield
        generator.set_state(before)
    elif isinstance(generator, np.random.Generator):
        bits = copy.deepcopy(generator.bit_generator.state)
        yield
        generator.bit_generator.state = bits
    elif isinstance(generator, np.random.RandomState):
        legacy = generator.get_state()
        yield
        generator.set_state(legacy)
    elif isinstance(generator, random.Random):
        inner = generator.getstate()
        yield
        generator.setstate(inner)
    else:
        yield
