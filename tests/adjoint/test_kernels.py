"""Convolution and pooling against torch's own, up to the second derivative, one query at a time and many at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.adjoint.intercept import Interceptor
from lightning_sgdinf.adjoint.kernels import KERNELS

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 6, 5)),
    "no bias": (lambda: nn.Conv2d(2, 3, 2, bias=False), (4, 2, 5, 5)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=2), (3, 2, 8, 7)),
    "padding": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1)), (3, 2, 5, 6)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=(2, 3), padding=1), (3, 2, 7, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (3, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2), (3, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (3, 2, 5, 5)),
    "reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (3, 2, 5, 5)),
    "one by one": (lambda: nn.Conv2d(2, 3, 1), (3, 2, 4, 4)),
    "one dimension": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (4, 2, 9)),
    "three dimensions": (lambda: nn.Conv3d(1, 2, 2, padding=1), (2, 1, 3, 4, 3)),
    "max pool": (lambda: nn.MaxPool2d(2), (3, 2, 6, 6)),
    "max pool, overlapping": (lambda: nn.MaxPool2d(3, stride=2, padding=1), (3, 2, 7, 6)),
    "max pool, dilated": (lambda: nn.MaxPool2d(2, stride=1, dilation=2, ceil_mode=True), (3, 2, 6, 5)),
}


class Net(nn.Module):
    """A layer between two that bend, with weights of its own before it or not."""

    def __init__(self, layer: nn.Module, channels: int, *, first: bool) -> None:
        super().__init__()
        self.scale = None if first else nn.Parameter(torch.rand(channels) + 0.5)
        self.layer = layer
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = torch.tanh(x * self.scale.view(1, -1, *[1] * (x.ndim - 2)))
        return torch.tanh(self.layer(x)).flatten(1)


def prepared(name: str, first: bool) -> tuple[Net, Tensor]:
    torch.manual_seed(2)
    make, shape = LAYERS[name]
    return Net(make(), shape[1], first=first), torch.randn(shape, dtype=torch.float64)


def derivatives(net: Net, x: Tensor, *, queries: int, batched: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, gradient, and Hessian-vector products for some directions, ``[Q, *shape]`` per parameter."""
    params = list(net.parameters())
    out = net(x)
    target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    loss = ((out - target) ** 2).sum() + (out**3).sum()
    grads = torch.autograd.grad(loss, params, create_graph=True)
    torch.manual_seed(9)
    along = [torch.randn(queries, *p.shape, dtype=p.dtype) for p in params]
    if batched:
        products = torch.autograd.grad(grads, params, along, is_grads_batched=True, allow_unused=True)
    else:
        rows = [
            torch.autograd.grad(grads, params, [a[q] for a in along], retain_graph=True, allow_unused=True)
            for q in range(queries)
        ]
        products = [torch.stack(column) for column in zip(*rows, strict=True)]
    return loss.detach(), [g.detach() for g in grads], list(products)


@pytest.mark.parametrize(
    ("name", "first"),
    [(n, first) for n in LAYERS for first in (True, False) if not (first and "pool" in n)],
)
def test_second_derivatives(name: str, first: bool) -> None:
    """On data, whose derivative nobody asks for, and on features."""
    net, x = prepared(name, first)
    value, gradient, products = derivatives(net, x, queries=3, batched=False)
    for batched in (False, True):
        with Interceptor(KERNELS):
            found = derivatives(net, x, queries=3, batched=batched)
        assert torch.equal(found[0], value)
        assert all(torch.equal(a, b) for a, b in zip(found[1], gradient, strict=True))
        for a, b in zip(found[2], products, strict=True):
            assert b.abs().max() > 1e-3, "the test is degenerate"
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_inputs_that_want_a_gradient_get_one() -> None:
    net, x = prepared("padding", True)
    expected, found = [], []
    for handlers, into in (({}, expected), (KERNELS, found)):
        leaf = x.clone().requires_grad_()
        with Interceptor(handlers):
            grads = torch.autograd.grad((net(leaf) ** 2).sum(), [leaf, *net.parameters()], create_graph=True)
        into += torch.autograd.grad(sum((g**3).sum() for g in grads), [leaf, *net.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_calls_that_are_left_to_torch() -> None:
    x = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    with Interceptor(KERNELS):
        assert torch.equal(F.conv2d(x, w), torch.conv2d(x, w))  # without a batch
        pooled, where = F.max_pool2d(x[None], 2, return_indices=True)
        assert where.dtype == torch.int64
        assert torch.equal(F.max_pool2d(x, 2), pooled[0])
        assert torch.equal(
            F.conv2d(x[None].float(), w.float(), stride=[2]), F.conv2d(x[None].float(), w.float(), stride=2)
        )


def test_ties_of_a_maximum_go_where_torch_has_them_go() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    with Interceptor(KERNELS):
        (found,) = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    assert torch.equal(found, expected)
