"""Convolutions of a few examples at a time, against torch's of the whole batch."""

import pytest
import torch
import torch.nn.functional as F

from lightning_sgdinf.kernels import CONVOLUTION_PARTS, Interceptor, convolution_parts

CALLS = {
    "images": lambda x, w, b: F.conv2d(x, w, b),
    "geometry": lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, dilation=(1, 2)),
    "padding by name": lambda x, w, b: F.conv2d(input=x, weight=w, bias=b, padding="same"),
    "groups": lambda x, w, b: F.conv2d(x, w[:, :1], b, groups=2),
    "series": lambda x, w, b: F.conv1d(x.flatten(2), w[..., 0], b, padding=1),
    "volumes": lambda x, w, b: F.conv3d(x.unsqueeze(2), w.unsqueeze(2), b),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("examples", [1, 5])
def test_values_and_gradients_are_those_of_the_whole_batch(call, examples, monkeypatch):
    monkeypatch.setattr(convolution_parts, "ROOM_BYTES", 1)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    tensors = draw(examples, 2, 6, 7), draw(4, 2, 3, 3), draw(4)
    whole = call(*tensors)
    calls = []
    with (
        Interceptor({f: lambda f, a, k: calls.append(0) or f(*a, **k) for f in CONVOLUTION_PARTS}),
        Interceptor(CONVOLUTION_PARTS),
    ):
        parts = call(*tensors)
    assert len(calls) == examples, "one example at a time"
    assert torch.equal(parts, whole)
    weights = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    for expected, found in zip(
        torch.autograd.grad((whole * weights).sum(), tensors),
        torch.autograd.grad((parts * weights).sum(), tensors),
        strict=True,
    ):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_what_needs_no_room_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(convolution_parts, "ROOM_BYTES", 1)
    seen = []
    with (
        Interceptor({torch.conv2d: lambda f, a, k: seen.append(len(a[0])) or f(*a, **k)}),
        Interceptor(CONVOLUTION_PARTS),
    ):
        F.conv2d(torch.ones(5, 1, 4, 4), torch.ones(1, 1, 2, 2))  # float32
        F.conv2d(torch.ones(2, 4, 4).double(), torch.ones(1, 2, 2, 2).double())  # one image, no batch
        empty = F.conv2d(torch.ones(0, 1, 4, 4).double(), torch.ones(1, 1, 2, 2).double())
    assert seen == [5, 2, 0]
    assert empty.shape == (0, 1, 3, 3)
    monkeypatch.undo()
    with (
        Interceptor({torch.conv2d: lambda f, a, k: seen.append(len(a[0])) or f(*a, **k)}),
        Interceptor(CONVOLUTION_PARTS),
    ):
        F.conv2d(torch.ones(5, 1, 4, 4).double(), torch.ones(1, 1, 2, 2).double())
    assert seen[3:] == [5], "small patches of all examples fit"
