"""Loss values with and without taps, slopes against one example at a time, curvature against plain double backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.kernels.intercept import Interceptor
from lightning_sgdinf.replay.example_weights import LossTap, expect_zero_or_one, tapped_output
from lightning_sgdinf.replay.row_owners import RowOrders, owners_in

B, C, T = 6, 4, 3
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
TOKENS = torch.arange(B * T).reshape(B, T) % C
VALUES = torch.linspace(-1, 1, B * C, dtype=torch.float64).reshape(B, C)
SHARES = torch.softmax(VALUES.flip(0) * 3, 1)
SIGNS = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
CLASS_WEIGHTS = torch.tensor([0.2, 1.5, 1.0, 0.4], dtype=torch.float64)

Loss = Callable[[Tensor], Tensor]
"""Of logits ``[B, C]`` (or ``[B, T * C]`` for the sequences)."""


def focal(z: Tensor) -> Tensor:
    each = F.cross_entropy(z, LABELS, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def two_terms(z: Tensor) -> Tensor:
    return 2 * F.cross_entropy(z, LABELS) + 0.5 * F.mse_loss(z, VALUES)


def triplets(z: Tensor) -> Tensor:
    return F.triplet_margin_loss(z, VALUES, VALUES.flip(0), margin=3.0)


LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda z: F.cross_entropy(z, LABELS),
    "class weights": lambda z: F.cross_entropy(z, LABELS, CLASS_WEIGHTS),
    "label smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.2),
    "ignored": lambda z: F.cross_entropy(z, LABELS, ignore_index=1),
    "soft targets": lambda z: F.cross_entropy(z, SHARES),
    "sum over size": lambda z: F.cross_entropy(z, LABELS, reduction="sum") / len(z),
    "by name": lambda z: F.cross_entropy(target=LABELS, input=z),
    "module": lambda z: nn.CrossEntropyLoss()(z, LABELS),
    "nll": lambda z: F.nll_loss(F.log_softmax(z, 1), LABELS),
    "focal": focal,
    "mse": lambda z: F.mse_loss(z, VALUES),
    "mse, output second": lambda z: F.mse_loss(VALUES, z),
    "huber": lambda z: F.huber_loss(z, VALUES, delta=0.3),
    "smooth l1": lambda z: F.smooth_l1_loss(z, VALUES),
    "l1": lambda z: F.l1_loss(z**2, VALUES),
    "bce": lambda z: F.binary_cross_entropy(torch.sigmoid(z), SHARES),
    "bce with logits": lambda z: F.binary_cross_entropy_with_logits(z, SHARES, pos_weight=CLASS_WEIGHTS),
    "kl": lambda z: F.kl_div(F.log_softmax(z, 1), SHARES, reduction="batchmean"),
    "poisson": lambda z: F.poisson_nll_loss(z, SHARES),
    "gaussian": lambda z: F.gaussian_nll_loss(z, VALUES, torch.exp(z)),
    "soft margin": lambda z: F.soft_margin_loss(z[:, 0], SIGNS),
    "multilabel": lambda z: F.multilabel_soft_margin_loss(z, SHARES),
    "hinge": lambda z: F.hinge_embedding_loss(z[:, 0] ** 2, SIGNS),
    "ranking": lambda z: F.margin_ranking_loss(z[:, 0], z[:, 1], SIGNS, margin=0.5),
    "cosine": lambda z: F.cosine_embedding_loss(z, VALUES, SIGNS),
    "triplet": triplets,
    "two terms": two_terms,
    "penalty": lambda z: F.cross_entropy(z, LABELS),
}
SEQUENCES: dict[str, Loss] = {
    "flattened": lambda z: F.cross_entropy(z.reshape(B * T, C), TOKENS.reshape(-1)),
    "channels": lambda z: F.cross_entropy(z.reshape(B, T, C).transpose(1, 2), TOKENS),
    "ignored tokens": lambda z: F.cross_entropy(z.reshape(B * T, C), TOKENS.reshape(-1), ignore_index=0),
}
ALL = {**LOSSES, **SEQUENCES}
COUPLED = {"class weights", "ignored", "ignored tokens"}  # the divisor is of the whole batch


class InBlocks(RowOrders):
    """Rows of one example lie together, in the order of the examples."""

    def known(self, call: int, name: str, rows: int, count: int) -> Tensor:
        return owners_in("blocks", rows, count)


class Setting:
    """A small network, its input, and a direction of its parameters."""

    def __init__(self, name: str, kind: torch.dtype = torch.float64) -> None:
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C * T if name in SEQUENCES else C)).to(kind)
        self.x = torch.randn(B, 3, dtype=kind)
        self.params = list(self.net.parameters())
        self.direction = [torch.randn_like(p) for p in self.params]
        self.penalty = 0.1 if name == "penalty" else 0.0

    def rest(self) -> Tensor | float:
        return self.penalty * sum((p**2).sum() for p in self.params) if self.penalty else 0.0

    def along(self, loss: Tensor, *, graph: bool = False) -> Tensor:
        """``<gradient, direction>``."""
        grads = torch.autograd.grad(loss, self.params, create_graph=graph)
        return sum((g * d).sum() for g, d in zip(grads, self.direction, strict=True))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_value_keeps_every_bit(name: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Setting(name, kind)
    for constant in ("VALUES", "SHARES", "SIGNS", "CLASS_WEIGHTS"):
        monkeypatch.setitem(globals(), constant, globals()[constant].to(kind))
    z = at.net(at.x)
    tap = LossTap(torch.rand(B, dtype=kind), InBlocks())
    with Interceptor(tap.handlers()):
        tapped = ALL[name](z)
    assert tap.calls
    assert torch.equal(tapped, ALL[name](z))


@pytest.mark.parametrize("name", ALL)
def test_slopes_and_curvature(name: str) -> None:
    at = Setting(name)
    weights = torch.ones(B, dtype=torch.float64, requires_grad=True)
    tap = LossTap(weights, InBlocks())
    with Interceptor(tap.handlers()):
        loss = ALL[name](at.net(at.x)) + at.rest()
    along = at.along(loss, graph=True)
    slopes, *curvature = torch.autograd.grad(along, [weights, *at.params], allow_unused=True)

    plain = at.along(ALL[name](at.net(at.x)) + at.rest(), graph=True)
    expected = torch.autograd.grad(plain, at.params, allow_unused=True)
    for a, b in zip(curvature, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-12, atol=1e-14)

    one_by_one = torch.stack([at.along(ALL[name](own_row(at.net(at.x), i))) for i in range(B)])
    assert one_by_one.abs().max() > 1e-3, "the test is degenerate"
    assert torch.allclose(slopes, one_by_one, rtol=1e-12, atol=1e-15)


def own_row(z: Tensor, i: int) -> Tensor:
    """The output with its graph in one row only."""
    keep = torch.zeros(len(z), 1, dtype=torch.bool)
    keep[i] = True
    return torch.where(keep, z, z.detach())


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in COUPLED])
def test_slopes_are_those_of_batches_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Setting(name)
    weights = torch.ones(B, dtype=torch.float64, requires_grad=True)
    with Interceptor(LossTap(weights, InBlocks()).handlers()):
        loss = LOSSES[name](at.net(at.x))
    (slopes,) = torch.autograd.grad(at.along(loss, graph=True), weights)
    constants = {k: globals()[k] for k in ("LABELS", "VALUES", "SHARES", "SIGNS")}
    flipped = VALUES.flip(0)
    for i in range(B):
        for key, value in constants.items():
            monkeypatch.setitem(globals(), key, value[i : i + 1])
        if name == "triplet":
            one = F.triplet_margin_loss(at.net(at.x[i : i + 1]), VALUES, flipped[i : i + 1], margin=3.0)
        else:
            one = LOSSES[name](at.net(at.x[i : i + 1]))
        assert float(slopes[i]) == pytest.approx(float(at.along(one)) / B, rel=1e-10, abs=1e-14)


def test_class_weights_that_are_trained_are_left_alone_and_targets_that_are_carry_weights() -> None:
    at = Setting("cross_entropy")
    teacher = nn.Linear(3, C).double()
    weights = torch.zeros(B, dtype=torch.float64)
    tap = LossTap(weights, InBlocks())
    with Interceptor(tap.handlers()):
        loss = F.mse_loss(at.net(at.x), teacher(at.x))
    assert all((g == 0).all() for g in torch.autograd.grad(loss, [*at.params, *teacher.parameters()]))
    assert loss > 0


def test_a_tap_at_a_submodules_output() -> None:
    at = Setting("cross_entropy")
    weights = torch.rand(B, dtype=torch.float64, requires_grad=True)
    tap = LossTap(weights, InBlocks())
    with tapped_output(at.net[2], tap):
        z = at.net(at.x)
        loss = (torch.logsumexp(z, 1) - z[torch.arange(B), LABELS]).mean()
    (slopes,) = torch.autograd.grad(at.along(loss, graph=True), weights)
    own = [at.along(F.cross_entropy(own_row(at.net(at.x), i), LABELS)) for i in range(B)]
    assert torch.allclose(slopes, torch.stack(own), rtol=1e-12)
    assert tap.calls == ["output"]
    assert not at.net[2]._forward_hooks


@pytest.mark.parametrize("value", [0.5, 2.0, float("nan")])
def test_weights_that_are_differentiated_are_zero_or_one(value: float) -> None:
    """A second derivative goes through the identity twice."""
    expect_zero_or_one(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="must be 0 or 1"):
        expect_zero_or_one(torch.tensor([1.0, value]))
