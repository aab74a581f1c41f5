"""Layers whose kernels for accelerators are differentiated once: another way is taken, and gives the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_sgdinf.kernels import DEVICE_LAYERS, Interceptor
from lightning_sgdinf.kernels.device_layers import rms_norm


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_recurrent_layers_are_called_without_cudnn(kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    flags = torch.backends.cudnn.flags

    @contextmanager
    def noting(enabled: bool, **more: Any) -> Iterator[None]:
        asked.append(enabled)
        with flags(enabled=enabled, **more):
            yield

    monkeypatch.setattr(torch.backends.cudnn, "flags", noting)
    layer, x = kind(3, 2), torch.randn(4, 5, 3)
    with Interceptor(DEVICE_LAYERS):
        out = layer(x)[0]
    assert asked == [False]
    assert torch.equal(out, layer(x)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [None, 1e-2])
def test_a_normalisation_by_its_formula(dtype: torch.dtype, eps: float | None) -> None:
    x = torch.linspace(-1, 2, 24, dtype=dtype).view(4, 2, 3).requires_grad_()
    weight = torch.linspace(0.5, 2, 6, dtype=dtype).view(2, 3).requires_grad_()
    for given in (weight, None):
        ours, own = rms_norm(x, (2, 3), given, eps), F.rms_norm(x, (2, 3), given, eps)
        torch.testing.assert_close(ours, own)
    if dtype == torch.float64:
        assert torch.autograd.gradgradcheck(lambda x, w: rms_norm(x, (2, 3), w, eps), (x, weight))
