"""Values that must not change under a borrower, in a form that can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.log import state_checksum
from lightning_sgdinf.testing.runs import SmallRun

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def host_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return all that a model and its process have which a borrower could leave behind otherwise.

    Args:
        model: Its tensors (which, where, and their bits), gradients, flags, modes, attributes and hooks are taken, and
            torch's global settings and the global random generators.
    """
    values: dict[str, Any] = {f"generator {name}": state for name, state in random_state.capture().items()}
    values["gradients enabled"], values["default dtype"] = torch.is_grad_enabled(), torch.get_default_dtype()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values[f"{name}: tensor"] = (id(tensor), tensor.data_ptr(), tensor.dtype, _bytes(tensor))
        values[f"{name}: requires_grad"] = tensor.requires_grad
        values[f"{name}: grad"] = None if tensor.grad is None else (id(tensor.grad), _bytes(tensor.grad))
    for name, part in model.named_modules():
        values[f"{name}: mode"] = part.training
        values[f"{name}: attributes"] = sorted(vars(part))
        values[f"{name}: hooks"] = [len(getattr(part, kind)) for kind in _HOOKS]
    return values


def run_fingerprint(run: SmallRun) -> dict[str, Any]:
    """Return the content of a run's record and data sets."""
    log = run.log
    values: dict[str, Any] = {f"state {t}": state_checksum(log.state(t)) for t in log.state_indices.tolist()}
    values |= {f"step {step.index}": (step.example_ids.tobytes(), str(step.groups)) for step in log.steps(0, len(log))}
    for name, loader in (("training set", run.train), ("validation set", run.validation)):
        values[name] = [_bytes(tensor) for tensor in loader.dataset.tensors]  # type: ignore[attr-defined]
    return values


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()
