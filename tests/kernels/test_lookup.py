"""Lookups and distances by their formulas: torch's values and gradients, and right second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.kernels import Interceptor, Phase, SparseRows, lookup_handlers
from tests.adjoint.test_held_constants import Net, scores, worst_error

INDICES = torch.tensor([3, 1, 3, 0, 2, 1, 4, 3])
OFFSETS = torch.tensor([0, 3, 3, 6])
BAGS: list[dict[str, Any]] = [
    {"mode": mode, **more}
    for mode in ("sum", "mean", "max")
    for more in ({}, {"padding_idx": 1}, {"padding_idx": -1}, {"include_last_offset": True})
]


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def expect_formula(call: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Compare values and gradients with torch's own; second derivatives with differences."""
    formula = Interceptor(lookup_handlers(Phase(), SparseRows()))

    def by_formula(x: Tensor) -> Tensor:
        with formula:
            return call(x)

    assert torch.allclose(by_formula(at), call(at), rtol=1e-13)
    own, ours = (torch.autograd.grad(f(at).pow(3).sum(), at)[0] for f in (call, by_formula))
    assert torch.allclose(ours, own, rtol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: by_formula(x).pow(2), (at,))


@pytest.mark.parametrize("options", BAGS, ids=str)
def test_bags(options: dict[str, Any]) -> None:
    expect_formula(lambda w: F.embedding_bag(INDICES, w, OFFSETS, **options), leaf(5, 2))
    if "include_last_offset" not in options:
        expect_formula(lambda w: F.embedding_bag(INDICES.view(2, 4), w, **options), leaf(5, 2))


def test_weighted_bags() -> None:
    weight = leaf(5, 2).detach()
    shares = torch.linspace(0.5, 2, 8, dtype=torch.float64).requires_grad_()
    expect_formula(lambda s: F.embedding_bag(INDICES, weight, OFFSETS, mode="sum", per_sample_weights=s), shares)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_distances(p: float) -> None:
    other = leaf(4, 3).detach().flip(0) * 0.7 + 0.3
    expect_formula(lambda x: torch.cdist(x, other, p), leaf(5, 3))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_distances_within_one_set(p: float) -> None:
    expect_formula(lambda x: F.pdist(x, p), leaf(5, 3))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_ramp(inplace: bool) -> None:
    at, formula = leaf(5, 3), Interceptor(lookup_handlers(Phase(), SparseRows()))

    def by_formula(x: Tensor) -> Tensor:
        with formula:
            return F.hardsigmoid(x * 4, inplace=inplace)

    assert torch.allclose(by_formula(at), F.hardsigmoid(at * 4), rtol=1e-13)
    own, ours = (torch.autograd.grad(f(at).sum(), at)[0] for f in (lambda x: F.hardsigmoid(x * 4), by_formula))
    assert torch.allclose(ours, own, rtol=1e-6)  # torch's sixth is one of float32
    assert torch.autograd.gradgradcheck(lambda x: by_formula(x).pow(2), (at,))


def test_no_distance_has_finite_derivatives() -> None:
    x = leaf(3, 2)
    with Interceptor(lookup_handlers(Phase(), SparseRows())):
        far = torch.cdist(x, x)
    (slope,) = torch.autograd.grad(far.sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    assert bool(torch.isfinite(slope).all() and torch.isfinite(curve).all())


def test_a_gradient_by_frequency_is_scaled_and_its_derivative_is_not() -> None:
    weight, phase = leaf(5, 2), Phase()
    with phase.taking_gradient():
        with Interceptor(lookup_handlers(phase, SparseRows())):
            ours = F.embedding(INDICES, weight, scale_grad_by_freq=True)
        (slope,) = torch.autograd.grad(ours.pow(3).sum(), weight, create_graph=True)
    own = F.embedding(INDICES, weight, scale_grad_by_freq=True)
    assert torch.allclose(slope, torch.autograd.grad(own.pow(3).sum(), weight)[0])
    (curve,) = torch.autograd.grad(slope.sum(), weight)
    used = torch.tensor([1.0, 1, 1, 1, 1], dtype=torch.float64)[:, None]
    assert torch.allclose(curve, 6 * weight.detach() * used)  # each index's 3 w^2, whatever its frequency


class Lookup(Net):
    """Looks codes of its input up."""

    def __init__(self, part: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.part = part()

    def codes(self, x: Tensor) -> Tensor:
        return (x.abs() * 2).long().clamp(max=4)


class Frequent(Lookup):
    def __init__(self) -> None:
        super().__init__(lambda: nn.Embedding(5, 3, scale_grad_by_freq=True))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.part(self.codes(x)).sum(1))


class Sparse(Frequent):
    def __init__(self) -> None:
        Lookup.__init__(self, lambda: nn.Embedding(5, 3, sparse=True))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


class Bag(Lookup):
    def __init__(self) -> None:
        super().__init__(lambda: nn.EmbeddingBag(5, 3, mode="max"))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.part(self.codes(x)))


class Prototypes(Net):
    def between(self, h: Tensor) -> Tensor:
        return torch.cdist(h, self.b.weight)[:, :1] + h


class Renormalised(Frequent):
    def __init__(self) -> None:
        Lookup.__init__(self, lambda: nn.Embedding(5, 3, max_norm=0.5))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own, of sparse gradients
@pytest.mark.parametrize("kind", [Frequent, Sparse, Bag, Prototypes], ids=lambda kind: kind.__name__)
def test_scores_are_those_of_training_again(kind: type[Net], tmp_path: Path) -> None:
    assert worst_error(kind, scores(kind, tmp_path / "run", certificate="off")) < 1e-6


def test_weights_that_a_forward_pass_changes_are_refused_while_recording(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedRunError, match="part has max_norm"):
        scores(Renormalised, tmp_path / "run")
