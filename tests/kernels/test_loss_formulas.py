"""Losses by their formulas: torch's values and gradients, right second derivatives, and scores as of training again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sgdinf.kernels import LOSS_FORMULAS, Interceptor, formula_of
from tests.adjoint.test_held_constants import Net, scores, worst_error

LABELS = torch.tensor([2, 0, 1])
ALIGNED: dict[str, dict[str, Any]] = {
    "padded": {"targets": torch.tensor([[1, 2, 2], [3, 1, 0], [2, 0, 0]])},
    "in a row": {"targets": torch.tensor([1, 2, 2, 3, 1, 2])},
    "another blank": {"targets": torch.tensor([[1, 2, 2], [0, 1, 3], [2, 3, 3]]), "blank": 3},
    "summed": {"targets": torch.tensor([1, 2, 2, 3, 1, 2]), "reduction": "sum"},
    "one by one": {"targets": torch.tensor([1, 2, 2, 3, 1, 2]), "reduction": "none"},
    "none to align": {"targets": torch.zeros(3, 0).long(), "target_lengths": torch.tensor([0, 0, 0])},
    "too short": {
        "targets": torch.tensor([1, 2, 2, 3, 1, 2]),
        "input_lengths": torch.tensor([2, 5, 3]),
        "zero_infinity": True,
    },
}
LISTED = torch.tensor([[1, 2, -1, 0], [3, -1, 0, 0], [-1, 1, 2, 3]])


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def expect_formula(func: Any, at: Tensor, *args: Any, **options: Any) -> None:
    """Compare values and gradients with torch's own; second derivatives with differences of torch's gradient."""

    def squared(call: Any, x: Tensor) -> Tensor:
        return call(x, *args, **options).square().sum()

    expect_same(func, squared, at, *args, **options)


def expect_same(func: Any, squared: Any, at: Tensor, *args: Any, **options: Any) -> None:

    formula = formula_of(func)
    assert formula is not func
    assert torch.allclose(formula(at, *args, **options), func(at, *args, **options), rtol=1e-12)
    own, ours = (torch.autograd.grad(squared(call, at), at)[0] for call in (func, formula))
    assert torch.allclose(ours, own, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(squared(formula, at), at, create_graph=True)
    along = torch.linspace(-1, 1, at.numel(), dtype=torch.float64).view_as(at)
    (curve,) = torch.autograd.grad((slope * along).sum(), at)
    shifted = [(at.detach() + eps * along).requires_grad_() for eps in (1e-6, -1e-6)]
    up, down = (torch.autograd.grad(squared(func, x), x)[0] for x in shifted)  # of torch's own gradient
    assert torch.allclose(curve, (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", ALIGNED.values(), ids=ALIGNED)
def test_alignments(options: dict[str, Any]) -> None:
    lengths = {"input_lengths": torch.tensor([6, 5, 3]), "target_lengths": torch.tensor([3, 2, 1]), **options}

    def squared(call: Any, x: Tensor) -> Tensor:
        return call(x.log_softmax(-1), **lengths).square().sum()

    def plain(call: Any, x: Tensor) -> Tensor:
        return call(x, **lengths).sum()

    expect_same(F.ctc_loss, squared, leaf(6, 3, 4), **lengths)
    # Torch's gradient takes probabilities to be normalised where they are not, and training follows it.
    expect_same(F.ctc_loss, plain, leaf(6, 3, 4), **lengths)


def test_the_alignment_of_one_sequence() -> None:
    one = (torch.tensor([1, 2]), torch.tensor(6), torch.tensor(2))
    expect_same(F.ctc_loss, lambda call, x: call(x.log_softmax(-1), *one).square(), leaf(6, 4), *one)


def test_an_example_that_cannot_be_aligned_is_infinite() -> None:
    loss = formula_of(F.ctc_loss)(leaf(2, 1, 4), torch.tensor([[1, 1]]), (2,), (2,), reduction="none")
    assert bool(loss.isinf().all())


@pytest.mark.parametrize("options", [{}, {"p": 2}, {"margin": 0.3, "reduction": "sum"}, {"reduction": "none"}], ids=str)
def test_margins_of_classes(options: dict[str, Any]) -> None:
    expect_formula(F.multi_margin_loss, leaf(3, 4), LABELS, **options)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    expect_formula(F.multi_margin_loss, leaf(3, 4), LABELS, weight=weight, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margins_of_several_labels(reduction: str) -> None:
    expect_formula(F.multilabel_margin_loss, leaf(3, 4), LISTED, reduction=reduction)
    expect_formula(F.multilabel_margin_loss, leaf(4), LISTED[0], reduction=reduction)


def test_handlers_take_the_formula() -> None:
    x = leaf(3, 4)
    with Interceptor(LOSS_FORMULAS):
        loss = F.multi_margin_loss(x, LABELS, p=2)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    assert slope.requires_grad


class Transcribed(Net):
    """Reads a sequence of three times, and aligns a label and a half with it."""

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        z = torch.stack([self(x), self(2 * x), self(-x)]).log_softmax(-1)
        return F.ctc_loss(z, *_sequences(y), reduction="none") / _sequences(y)[-1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.ctc_loss(torch.stack([self(x), self(2 * x), self(-x)]).log_softmax(-1), *_sequences(y))


def _sequences(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lengths = 1 + y % 2
    return torch.stack([1 + y % 2, 2 - y % 2], 1), torch.full_like(y, 3), lengths


class Margins(Net):
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return F.multi_margin_loss(self(x), y, p=2, reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.multi_margin_loss(self(batch[0]), batch[1], p=2)


class Fused(Net):
    """The last layer lies in the loss."""

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return F.cross_entropy(F.linear(h, self.b.weight, self.b.bias), y, reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h = torch.tanh(self.a(batch[0]))
        return F.linear_cross_entropy(h, self.b.weight, batch[1], linear_bias=self.b.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Ramp(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ramp = nn.Hardsigmoid(inplace=True)

    def between(self, h: Tensor) -> Tensor:
        return self.ramp(h * 2)


class Reentrant(Net):
    def between(self, h: Tensor) -> Tensor:
        return checkpoint(lambda z: torch.sin(self.b(z)) @ self.b.weight, h, use_reentrant=True)


class Unreached(Net):
    """Nothing inside needs a gradient, since nothing that goes in does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + checkpoint(self.b, torch.cat([x, x[:, :1]], 1), use_reentrant=True)


CHECKPOINTS = "ignore:None of the inputs have requires_grad:UserWarning"
KINDS = [Transcribed, Margins, Ramp, Reentrant, Unreached, *([Fused] if hasattr(F, "linear_cross_entropy") else [])]


@pytest.mark.filterwarnings(CHECKPOINTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_scores_are_those_of_training_again(kind: type[Net], tmp_path: Path) -> None:
    assert worst_error(kind, scores(kind, tmp_path / "run")) < 1e-6
