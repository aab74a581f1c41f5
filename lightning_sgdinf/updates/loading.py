"""A state out of a model and into it, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import ModelMismatchError
from lightning_sgdinf.state import ModelState


def state_of(model: nn.Module) -> ModelState:
    """Return a copy of all parameters (trained or not) and buffers of a model, without an optimizer's part."""
    return ModelState(params=dict(model.named_parameters()), buffers=dict(model.named_buffers())).clone()


def load_state(model: nn.Module, state: ModelState) -> None:
    """Write the parameters and buffers of a state into a model, in place; the optimizer's part is not needed.

    Nothing is written unless all fits.

    Args:
        model: Has every tensor of the state under the same name, with the same shape and dtype. The state must have all
            its buffers and trained parameters; parameters that are not trained may be missing and are left alone.
        state: What to write; on any device.

    Raises:
        ModelMismatchError: A tensor is missing on either side, or has another shape or dtype; names them.
    """
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    wrong = _misfits("parameter", params, state.params) + _misfits("buffer", buffers, state.buffers)
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ModelMismatchError(
            f"the state does not fit {type(model).__name__}: {shown}. Load it into the model that was trained."
        )
    with torch.no_grad():
        for name, value in state.params.items():
            params[name].copy_(value)
        for name, value in state.buffers.items():
            buffers[name].copy_(value)


@contextmanager
def with_state(model: nn.Module, state: ModelState) -> Iterator[nn.Module]:
    """Lend the model with a state loaded; afterwards its parameters and buffers are what they were, bit for bit.

    Args:
        model: As in `load_state`.
        state: What it shall hold inside the ``with`` block.

    Raises:
        ModelMismatchError: The state does not fit the model.
    """
    before = state_of(model)
    load_state(model, state)
    try:
        yield model
    finally:
        load_state(model, before)


def _misfits(kind: str, have: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    wrong = [f"{kind} {n} is not in the model" for n in given if n not in have]
    for name, tensor in have.items():
        if (value := given.get(name)) is None:
            # Parameters that are not trained are no part of a recorded state.
            if kind == "buffer" or tensor.requires_grad:
                wrong.append(f"{kind} {name} is not in the state")
        elif value.shape != tensor.shape or value.dtype != tensor.dtype:
            wrong.append(f"{kind} {name} is {_form(tensor)} in the model and {_form(value)} in the state")
    return wrong


def _form(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
