"""A module borrowed for replay and given back as it was.

Replay runs the user's own ``training_step`` with recorded parameters, outside the Trainer. For as long as that takes
the module has other tensors, gradients switched on for exactly the trained parameters, logging and metrics that do
nothing, and a stand-in where its Trainer was. All of it is undone on the way out, errors included: the caller's tensors
are set aside, never written to, and what a step keeps on the module (a counter, a list of outputs) is as it was before.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_sgdinf.errors import ModelMismatchError
from lightning_sgdinf.log import uncompiled
from lightning_sgdinf.replay.stand_in import TrainerStandIn

_MISSING: Any = object()


@contextmanager
def borrowed(
    module: nn.Module,
    *,
    trained: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None = None,
    stand_in: TrainerStandIn,
) -> Iterator[dict[str, nn.Parameter]]:
    """Lend a module to replay.

    Args:
        module: The user's LightningModule (or any module with ``training_step``).
        trained: Names of the parameters that were trained; only these require gradients while lent.
        device: Where the lent tensors live.
        dtype: Floating-point dtype of all lent tensors; ``None`` leaves each as it is.
        stand_in: Takes the Trainer's place.

    Yields:
        The trained parameters by name, in the order of ``trained``.

    Raises:
        ModelMismatchError: If the module lacks a parameter of that name; lists what it has.
    """
    named = dict(module.named_parameters())
    missing = [n for n in trained if n not in named]
    if missing:
        raise ModelMismatchError(
            f"the log was written by a model with parameters {missing[:5]} that this one lacks; it has "
            f"{sorted(named)[:10]} ... Pass the module class and configuration that was trained."
        )
    wanted = set(trained)
    with ExitStack() as undo:
        for name, parameter in named.items():
            # Undone in reverse: a gradient fits its parameter only once that has its own dtype and device again.
            undo.callback(setattr, parameter, "grad", parameter.grad)
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.grad = None
            _lend_tensor(parameter, device, dtype, undo)
            undo.callback(setattr, parameter, "grad", None)
            parameter.requires_grad_(name in wanted)
        for buffer in module.buffers():
            _lend_tensor(buffer, device, dtype, undo)
        for part in module.modules():
            undo.callback(_give_back, part.__dict__, _public(part), containers_of(part))
            undo.callback(_restore_all, part._buffers, dict(part._buffers))
            undo.callback(setattr, part, "training", part.training)
            _hush(part, undo)
            if "_trainer" in part.__dict__:
                _put(part, "_trainer", stand_in, undo)
            if "_device" in part.__dict__:
                _put(part, "_device", device, undo)
            if dtype is not None and "_dtype" in part.__dict__:
                _put(part, "_dtype", dtype, undo)
        yield {n: named[n] for n in trained}


Containers = list[tuple[Any, Any]]
"""Containers and what was in them."""


def containers_of(part: nn.Module) -> Containers:
    """Return the plain lists, dicts, sets and deques that a module has as attributes, with copies of their content."""
    return [(value, copy.copy(value)) for value in _public(part).values() if type(value) in (list, dict, set, deque)]


def empty_out(containers: Containers) -> None:
    """Take out what has been added since: a list of outputs would keep the graph of every step."""
    for container, content in containers:
        if len(container) != len(content):
            _refill(container, content)


def lasting_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield every tensor that a module keeps from step to step."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def drop_graphs(module: nn.Module) -> None:
    """Cut what a step has kept as attributes of the module from its graph."""
    for part in module.modules():
        for name, value in _public(part).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                part.__dict__[name] = value.detach()
            elif type(value) is dict:
                value.update({k: v.detach() for k, v in value.items() if isinstance(v, Tensor) and not v.is_leaf})


def set_modes(module: nn.Module, eval_modules: Sequence[str]) -> None:
    """Put every sub-module in train mode but the named ones."""
    frozen = set(map(uncompiled, eval_modules))
    for name, part in module.named_modules():
        part.training = uncompiled(name) not in frozen


def _public(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in part.__dict__.items() if not name.startswith("_")}


def _give_back(attributes: dict[str, Any], before: dict[str, Any], containers: Containers) -> None:
    for name in [name for name in attributes if not name.startswith("_") and name not in before]:
        del attributes[name]
    attributes.update(before)
    for container, content in containers:
        _refill(container, content)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(content)


def _lend_tensor(tensor: Tensor, device: torch.device, dtype: torch.dtype | None, undo: ExitStack) -> None:
    original = tensor.data
    undo.callback(setattr, tensor, "data", original)
    tensor.data = original.to(device=device, dtype=dtype if dtype and original.is_floating_point() else None, copy=True)


def _hush(part: nn.Module, undo: ExitStack) -> None:
    """Make logging and metrics of one sub-module do nothing; their values never feed the loss."""
    if hasattr(part, "log") and hasattr(part, "log_dict"):
        _put(part, "log", _nothing, undo)
        _put(part, "log_dict", _nothing, undo)
        if hasattr(part, "print"):
            _put(part, "print", _nothing, undo)
    if isinstance(part, (Metric, MetricCollection)) and not getattr(vars(part).get("forward"), "is_awake", False):
        value = _zero if isinstance(part, Metric) else _no_values
        for name, function in (("update", _nothing), ("forward", value), ("compute", value)):
            _put(part, name, function, undo)


def _put(part: nn.Module, name: str, value: Any, undo: ExitStack) -> None:
    undo.callback(_restore, part.__dict__, name, part.__dict__.get(name, _MISSING))
    part.__dict__[name] = value


def _restore(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is _MISSING:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def _restore_all(entries: dict[str, Any], before: dict[str, Any]) -> None:
    entries.clear()
    entries.update(before)


def _nothing(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


def _zero(*args: Any, **kwargs: Any) -> Tensor:
    del args, kwargs
    return torch.zeros(())


def _no_values(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
    del args, kwargs
    return {}
