"""Hooks that make at the start of a validation what ``validation_step`` needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from lightning_sgdinf.dtypes import tensors_made_in

_HOOKS = ("on_validation_start", "on_validation_epoch_start")


def start_hooks(module: Any) -> list[Any]:
    """Return a module's own hooks of the start of a validation."""
    hooks = [getattr(module, name, None) for name in _HOOKS]
    libraries = ("lightning", "pytorch_lightning")
    return [h for h in hooks if h is not None and getattr(h, "__module__", "").partition(".")[0] not in libraries]


@contextmanager
def validation_started(module: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Run the hooks of the start of a validation; afterwards the module has the attributes that it had.

    One that fails, as those do that report on outputs of training, is left out: if the step needs what it makes, that
    is an error then.

    Args:
        module: The borrowed module.
        dtype: Floating-point precision in which they make tensors, if not the recorded one.
    """
    hooks = start_hooks(module)
    before = [(vars(part), dict(vars(part))) for part in module.modules()] if hooks else []
    try:
        for hook in hooks:
            with suppress(Exception), warnings.catch_warnings(), torch.enable_grad(), tensors_made_in(dtype):
                warnings.simplefilter("ignore")
                hook()
        yield
    finally:
        for attributes, values in before:
            for name in attributes.keys() - values.keys():
                del attributes[name]
            attributes.update(values)
