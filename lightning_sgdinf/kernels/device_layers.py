"""Layers whose kernels for accelerators torch differentiates once: recurrent ones of cuDNN, and a fused normalisation.

On the processor they are made of parts that have second derivatives, and so they are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.kernels.intercept import Handler


def _recurrent(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.backends.cudnn.flags(enabled=False):
        return func(*args, **kwargs)


def _normalised(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x = args[0] if args else kwargs["input"]
    return func(*args, **kwargs) if x.device.type == "cpu" else rms_norm(*args, **kwargs)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    r"""Compute ``F.rms_norm``, :math:`x\,(\overline{x^2} + \epsilon)^{-1/2}\,w`, by its formula."""
    wide = torch.promote_types(input.dtype, torch.float32)
    x = input.to(wide)
    least = torch.finfo(wide).eps if eps is None else eps
    out = x * (x.square().mean([*range(-len(normalized_shape), 0)], keepdim=True) + least).rsqrt()
    return out.to(input.dtype) if weight is None else out.to(input.dtype) * weight


DEVICE_LAYERS: Mapping[Callable[..., Any], Handler] = {
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    F.rms_norm: _normalised,
}
"""Handlers that every differentiated step needs."""
