"""Judge before a run starts if it can be recorded, and replayed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import is_recordable
from lightning_sgdinf.plain_text import encodable
from lightning_sgdinf.record.budget import Budget
from lightning_sgdinf.record.keep import Keep, LastEpochs
from lightning_sgdinf.record.network import network_file_system
from lightning_sgdinf.record.state_reader import StateReader

_SHARDING = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy"}
_CLOSURE_OPTIMIZERS = ("LBFGS",)

_GRADIENT_HOOKS = (
    "backward",
    "configure_gradient_clipping",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "optimizer_zero_grad",
)


def is_tuner_search(trainer: Any) -> bool:
    """Tell if this fit is a learning-rate or batch-size search that never trains."""
    return any(getattr(callback, "_early_exit", False) for callback in trainer.callbacks)


def is_of_search(checkpoint: Any) -> bool:
    """Tell if a path is that of the checkpoint to which such a search returns when it is done."""
    return PurePath(str(checkpoint)).name.startswith((".lr_find_", ".scale_batch_size_"))


def check_keep(keep: Keep | Budget, max_epochs: int | None) -> None:
    """Refuse a policy that the Trainer's settings make meaningless.

    Raises:
        ConfigurationError: If ``last_epochs(n)`` meets a Trainer without ``max_epochs``.
    """
    if isinstance(keep, LastEpochs) and (max_epochs is None or max_epochs < 0):
        raise ConfigurationError(
            f"keep={str(keep)!r} counts from the Trainer's max_epochs, which is {max_epochs}. Set max_epochs, or use "
            "keep='every(k)'."
        )


def advice_on_location(path: Path) -> str:
    """Return what speaks against a log at a path, as a sentence without full stop; empty if nothing does."""
    file_system = network_file_system(path)
    if not file_system:
        return ""
    return (
        f"{path} is on a network file system ({file_system}), where neither locks nor what a killed process has "
        "written can be relied on. Record to a local disk; segments that are finished (seg-*.h5) never change again "
        "and can be copied while the run goes on, end.h5 when it has ended"
    )


def impossible_to_record(trainer: Any) -> str:
    """Return why nothing at all can be recorded, as a sentence without full stop; empty if something can."""
    kind = type(trainer.strategy)
    names = {base.__name__ for base in kind.__mro__}
    if names & _SHARDING:
        return (
            f"{kind.__name__} shares parameters and optimizer state out over the processes, and changes their shapes, "
            "so there is no state of the model to record. Train with strategy='ddp', or on one device"
        )
    if trainer.world_size > 1 and "DDPStrategy" not in names:
        return (
            f"training runs on {trainer.world_size} processes under {kind.__name__}, and runs of several processes are "
            "recorded with strategy='ddp' only (or 'ddp_spawn' and the like). Train with that, or on one device"
        )
    return ""


def impossible_tensors(module: Any) -> str:
    """Return why the module's tensors cannot be recorded, as a sentence without full stop; empty if they can."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if encodable(name) != name:
            return f"{name!a} is a name with half a character. Give the module or tensor another one"
        if is_lazy(tensor):
            return (
                f"{name} has no shape yet. Give lazy layers an example before the optimizer is made, e.g. in "
                "configure_model(): self(example)"
            )
        if _has_no_memory(tensor):
            return (
                f"{name} is a {type(tensor.data).__name__}, which wraps other tensors and has no memory of its own. "
                "Train with plain tensors"
            )
    return ""


def _has_no_memory(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.numel():
        return False
    try:
        return not tensor.data_ptr()
    except RuntimeError:
        return True


def impossible_optimizers(trainer: Any) -> str:
    """Return why the optimizers cannot be recorded, as a sentence without full stop; empty if they can."""
    if len(trainer.optimizers) != 1:
        return (
            f"the run has {len(trainer.optimizers)} optimizers, and only runs with one can be recorded. Train with a "
            "single optimizer"
        )
    optimizer = trainer.optimizers[0]
    if not isinstance(optimizer, torch.optim.Optimizer):
        return (
            f"the optimizer is a {type(optimizer).__qualname__}, which is no torch.optim.Optimizer and has no step "
            "hooks. Derive it from torch.optim.Optimizer"
        )
    for group in optimizer.param_groups:
        rate = group.get("lr", 0.0)
        numbers = isinstance(rate, (int, float, np.number, np.ndarray, torch.Tensor)) and not isinstance(rate, bool)
        if not numbers or (isinstance(rate, (torch.Tensor, np.ndarray)) and math.prod(rate.shape) != 1):
            return f"the optimizer's learning rate is {rate!r}, which is not a number. Use a float or a 0-d tensor"
    return ""


def impossible_to_replay(module: Any, optimizer: torch.optim.Optimizer, reader: StateReader) -> list[str]:
    """Return why the run cannot be replayed although it can be recorded, as sentences without full stop."""
    reasons = []
    if not module.automatic_optimization:
        reasons.append(MANUAL_OPTIMIZATION)
    if any(base.__name__ in _CLOSURE_OPTIMIZERS for base in type(optimizer).__mro__):
        reasons.append(SEVERAL_EVALUATIONS)
    reasons += _acts_unseen(module)
    if reader.foreign:
        reasons.append(foreign_parameters(reader.foreign))
    reasons.extend(_odd_parameters(reader.params))
    reasons.extend(_shared_memory(module, reader.params))
    return reasons


def _odd_parameters(params: Mapping[str, torch.Tensor]) -> list[str]:
    for name, p in params.items():
        if nn.parameter.is_lazy(p):
            return [
                f"the parameter {name} has no shape before the first batch (a lazy layer). Run a batch through the "
                "module before the fit"
            ]
        if not is_recordable(p):
            return [
                f"the parameter {name} is a {p.layout} tensor of {p.dtype}, which a log cannot hold. Make it a "
                "dense one of float32 or another floating-point type"
            ]
        if not p.is_floating_point() or p.dtype.itemsize == 1:
            return [
                f"the parameter {name} has dtype {p.dtype}, and derivatives are taken in real floating-point numbers "
                "of 16 bits or more. Keep real and imaginary part in two parameters (torch.complex joins them), or "
                "train it in bfloat16"
            ]
    return []


def _shared_memory(module: nn.Module, params: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what lies in the memory of a trained parameter without being it: it moves when that one is trained."""
    owners = {p.untyped_storage().data_ptr(): n for n, p in params.items() if is_recordable(p) and p.numel()}
    for name, buffer in module.named_buffers():
        if is_recordable(buffer) and buffer.numel() and (owner := owners.get(buffer.untyped_storage().data_ptr())):
            return [
                f"the buffer {name} lies in the memory of the parameter {owner}, so that training the one moves the "
                "other, which replay cannot know. Register a clone, or read the parameter where the buffer is read"
            ]
    return []


def foreign_parameters(count: int) -> str:
    """Return why a run with parameters from elsewhere cannot be replayed, as sentences without full stop."""
    return (
        f"the optimizer holds {count} parameters that are none of the module's, so they have no name. Register them in "
        "the LightningModule"
    )


def _acts_unseen(module: nn.Module) -> list[str]:
    """Return what in a module changes weights or gradients where no replay repeats it."""
    reasons = []
    for name, part in module.named_modules():
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None:
            reasons.append(
                f"{name} has max_norm, with which the forward pass itself changes the weights, and that is not "
                "differentiated. Leave out max_norm, and bound the norm of what is looked up in the module's forward"
            )
    for name, parameter in module.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            reasons.append(
                f"the parameter {name} has a hook that acts on its gradient once that is summed up "
                "(register_post_accumulate_grad_hook), which replay does not repeat. Use register_hook for what is "
                "done to a gradient, and let the Trainer take the steps"
            )
    return reasons


def impossible_to_replay_processes(trainer: Any, module: nn.Module) -> list[str]:
    """Return why a run of several processes cannot be replayed, as sentences without full stop."""
    if trainer.world_size == 1:
        return []
    strategy, reasons = trainer.strategy, []
    synchronized = [n for n, m in module.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    if synchronized:
        reasons.append(
            f"{synchronized[0]} is a SyncBatchNorm, which normalises with the batches of all processes together, and "
            "replay takes one process's batch after another. Train with sync_batchnorm=False, or on one device"
        )
    if getattr(strategy, "_ddp_comm_hook", None) is not None:
        reasons.append(
            "ddp_comm_hook changes how the processes' gradients are averaged, and by how much is not recorded. Train "
            "without it"
        )
    if getattr(strategy, "_model_averaging_period", None) is not None:
        reasons.append(
            "model_averaging_period lets the processes' parameters differ, and only those of process 0 are recorded. "
            "Train without it"
        )
    own = _buffers_with_a_will(module)
    if list(module.buffers()) and not getattr(strategy, "_ddp_kwargs", {}).get("broadcast_buffers", True):
        reasons.append(
            "with broadcast_buffers=False every process has buffers of its own, and only those of process 0 are "
            "recorded. Train with broadcast_buffers=True, the default"
        )
    elif own and trainer.accumulate_grad_batches > 1:
        reasons.append(
            f"the buffer {own[0]} may change from batch to batch, in every process in its own way, and only what "
            "process 0 makes of it is recorded. Train with accumulate_grad_batches=1, where all processes begin a step "
            "with the same buffers"
        )
    return reasons


def _buffers_with_a_will(module: nn.Module) -> list[str]:
    """Return the names of buffers that a training pass may both read and write; running statistics are only written."""
    normalizing = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    statistics = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, normalizing))
    return [name for name, _ in module.named_buffers() if not name.startswith(statistics)]


SEVERAL_EVALUATIONS = (
    "the optimizer evaluates the loss several times per step. Use one that evaluates it once, such as SGD or Adam"
)

MANUAL_OPTIMIZATION = (
    "the module optimizes manually, so the gradient need not be that of what training_step returns. Use automatic "
    "optimization"
)


def gradient_overrides(module: Any) -> list[str]:
    """Return the names of the module's own hooks that may do something to gradients or steps that is not in the
    record."""
    return [name for name in _GRADIENT_HOOKS if name in vars(module) or not _is_lightnings(type(module), name)]


def gradient_callbacks(callbacks: Iterable[Any]) -> list[str]:
    """Return the hooks of callbacks that come between a backward pass and the step, as ``Class.hook``."""
    hooks = ("on_after_backward", "on_before_optimizer_step")
    return [f"{type(c).__name__}.{name}" for c in callbacks for name in hooks if not _is_lightnings(type(c), name)]


def _is_lightnings(kind: type, name: str) -> bool:
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    return owner is None or owner.__module__.split(".")[0] in ("lightning", "pytorch_lightning", "lightning_sgdinf")
