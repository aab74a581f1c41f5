"""Kernels against torch's own operations up to the second derivative, one query at a time and many at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.kernels import batch_norm, layer_handlers
from lightning_sgdinf.kernels.channels_last import Twin, Twins
from lightning_sgdinf.kernels.intercept import Interceptor
from lightning_sgdinf.kernels.running_statistics import RunningStatistics

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
    "relu": (lambda: nn.ReLU(), (3, 2, 5, 4)),
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
    [(n, first) for n in LAYERS for first in (True, False) if not (first and ("pool" in n or "relu" in n))],
)
def test_second_derivatives(name: str, first: bool) -> None:
    """On data, whose derivative nobody asks for, and on features."""
    net, x = prepared(name, first)
    value, gradient, products = derivatives(net, x, queries=3, batched=False)
    for batched in (False, True):
        with Interceptor(layer_handlers(Twins())):
            handled = derivatives(net, x, queries=3, batched=batched)
        assert torch.equal(handled[0], value)
        assert all(torch.equal(a, b) for a, b in zip(handled[1], gradient, strict=True))
        for a, b in zip(handled[2], products, strict=True):
            assert b.abs().max() > 1e-3, "the test is degenerate"
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_inputs_that_want_a_gradient_get_one() -> None:
    net, x = prepared("padding", True)
    expected, handled = [], []
    for handlers, into in (({}, expected), (layer_handlers(Twins()), handled)):
        leaf = x.clone().requires_grad_()
        with Interceptor(handlers):
            grads = torch.autograd.grad((net(leaf) ** 2).sum(), [leaf, *net.parameters()], create_graph=True)
        into += torch.autograd.grad(sum((g**3).sum() for g in grads), [leaf, *net.parameters()])
    for a, b in zip(handled, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_calls_that_are_left_to_torch() -> None:
    x = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    with Interceptor(layer_handlers(Twins())):
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
    with Interceptor(layer_handlers(Twins())):
        (gradient,) = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    assert torch.equal(gradient, expected)


def deep(seed: int) -> nn.Sequential:
    """Every kernel in a row, as networks have them."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 2, bias=False), nn.BatchNorm2d(5, affine=False), nn.SiLU(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    return net.train()


def second_order(net: nn.Module, x: Tensor, *, handled: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    params = list(net.parameters())
    twins = Twins()
    watch = RunningStatistics(net, twins)
    handlers = {**layer_handlers(twins), **watch.handlers()} if handled else {}
    with Interceptor(handlers):
        loss = F.cross_entropy(net(x), torch.arange(len(x)) % 3)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    torch.manual_seed(5)
    return (
        loss.detach(),
        [g.detach() for g in grads],
        list(
            torch.autograd.grad(grads, params, [torch.randn(g.shape, dtype=torch.float64).to(g.dtype) for g in grads])
        ),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-11)])
def test_a_whole_network(dtype: torch.dtype, tolerance: float) -> None:
    """Channels-last order is for single precision; there it must be the same thing up to rounding."""
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = second_order(deep(3).double(), x.double(), handled=False)[2]
    plain = second_order(net := deep(3).to(dtype), x, handled=False)
    handled = second_order(other := deep(3).to(dtype), x, handled=True)
    assert torch.equal(handled[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(handled[1], plain[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), other.buffers(), strict=True))
    for a, b in zip(handled[2], exact, strict=True):
        assert float((a - b).norm()) <= tolerance * max(float(b.norm()), 1.0)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (3, 3, 4, 2), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_statistics_are_differentiated(shape: tuple[int, ...], affine: bool) -> None:
    """Output, mean and variance, twice, against elementary operations."""
    torch.manual_seed(0)
    x, out_of = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    scale = torch.rand(3, dtype=torch.float64) + 0.5 if affine else None
    shift = torch.randn(3, dtype=torch.float64) if affine else None
    axes, view = [0, *range(2, len(shape))], (1, -1, *[1] * (len(shape) - 2))

    def by_hand(x: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = x.mean(axes), x.var(axes, unbiased=True)
        n = x.numel() // 3
        y = (x - mean.view(view)) * (var * (n - 1) / n + 1e-3).rsqrt().view(view)
        return (y if w is None or b is None else y * w.view(view) + b.view(view)), mean, var

    def closed(x: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        return batch_norm.normalise(x, w, b, running, 0.1, 1e-3, Twin(x))

    results = []
    for layer in (by_hand, closed):
        leaves = [t.clone().requires_grad_() for t in (x, scale, shift) if t is not None]
        out, mean, var = layer(*leaves, *[None] * (3 - len(leaves)))
        first = torch.autograd.grad(((out - out_of) ** 3).sum(), leaves, create_graph=True)
        torch.manual_seed(1)
        along = [torch.randn_like(t) for t in (*first, mean, var)]
        second = torch.autograd.grad([*first, mean, var], leaves, along)
        results.append([out, mean, var, *first, *second])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
