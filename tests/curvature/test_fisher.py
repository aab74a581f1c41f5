"""Fisher matrices against per-example gradients by torch.func, and their solves against dense algebra, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_sgdinf.curvature import EmpiricalDiagonal, ExactDiagonal, KroneckerFactors
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.testing.runs import NormalisedNet, SmallNet, SmallRun, small_run
from tests.updates.test_extrapolated import opened


class ConvolvedNet(SmallNet):
    """Positions in convolutions of two kinds, and a linear layer on several positions; rows of 5 numbers in."""

    def __init__(self) -> None:
        super().__init__()
        self._modules.clear()
        for part in (
            nn.Unflatten(1, (1, 5)),
            nn.Conv1d(1, 2, 3, padding=1, stride=2),
            nn.Tanh(),
            nn.Linear(3, 4, bias=False),
            nn.Unflatten(2, (2, 2)),
            nn.Conv2d(2, 2, 2, padding=1, dilation=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(18, 3),
        ):
            self.append(part)
        self.double()


class BinaryNet(SmallNet):
    """One logit."""

    def __init__(self) -> None:
        super().__init__()
        self[2] = nn.Linear(4, 1)
        self.double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x)[:, 0], (y > 0).double())


class TwiceNet(SmallNet):
    """A layer that is called twice in a pass."""

    def __init__(self) -> None:
        shared = nn.Linear(4, 4)
        super().__init__(nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh())


class InPlaceNet(SmallNet):
    """Changes a layer's output in place."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(inplace=True))


class RowsNet(SmallNet):
    """A layer on positions that are rows of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self[0](x)
        return self[2](self.mixed(torch.stack([h, h.flip(1) * x[:, :4]], 1)))

    def mixed(self, h: Tensor) -> Tensor:
        return self.mix(h.flatten(0, 1)).view_as(h).tanh().sum(1)


class PositionsFirstNet(RowsNet):
    """A layer on positions that come before the examples: five of them, as many as there are examples in a batch."""

    def mixed(self, h: Tensor) -> Tensor:
        first = torch.stack([h[:, k % 2] * (1 + k) for k in range(5)])
        return self.mix(first).tanh().sum(0)


class BorrowedNet(SmallNet):
    """A weight that is used outside of its layer, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self[2].weight.square().sum() * x[:, :3]


UNUSUAL = [RowsNet, PositionsFirstNet, BorrowedNet]


def example_gradients(run: SmallRun, labels: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients ``[N, P]`` of every example's loss with labels of one's own, and log-probabilities ``[N, C]``."""
    net = type(run.model)().eval()
    final = run.log.state(9)
    net.load_state_dict({**run.model.state_dict(), **final.params, **final.buffers})
    x, y = run.train.dataset.tensors
    frozen = {n: p for n, p in net.named_parameters() if n not in final.params}
    buffers = dict(net.named_buffers())

    def logits(params: dict[str, Tensor], one: Tensor) -> Tensor:
        z = functional_call(net, {**frozen, **buffers, **params}, (one[None],))[0]
        return torch.cat([torch.zeros_like(z), z]) if len(z) == 1 else z

    def loss(params: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits(params, one)[None], label[None])

    params = {n: v.clone() for n, v in final.params.items()}
    rows = vmap(grad(loss), (None, 0, 0))(params, x, labels(y))
    probabilities = vmap(logits, (None, 0))(params, x).log_softmax(1)
    return torch.cat([rows[n].reshape(len(x), -1) for n in params], 1).detach(), probabilities.detach()


def exact(run: SmallRun, classes: int) -> Tensor:
    """The whole exact-label Fisher matrix by brute force."""
    total: Tensor | float = 0.0
    for label in range(classes):
        rows, log_p = example_gradients(run, lambda y, label=label: torch.full_like(y, label))
        total = total + (rows * log_p[:, label : label + 1].exp()).T @ rows
    return torch.as_tensor(total) / 13


@pytest.mark.parametrize(
    ("make", "classes"),
    [
        *((make, 3) for make in (SmallNet, NormalisedNet, ConvolvedNet, TwiceNet, InPlaceNet, *UNUSUAL)),
        (BinaryNet, 2),
    ],
)
def test_diagonals_are_brute_force_over_labels(make: type[SmallNet], classes: int) -> None:
    small = small_run(make=make)
    with opened(small) as run:
        values = ExactDiagonal(batch_size=5).of(run).values
        empirical = EmpiricalDiagonal().of(run).values
    expected = exact(small, classes).diagonal()
    assert (values - expected).abs().max() <= 1e-10 * expected.max()
    own = example_gradients(small, lambda y: (y > 0).long() if classes == 2 else y)[0].square().mean(0)
    assert (empirical - own).abs().max() <= 1e-10 * own.max()
    assert (values - empirical).abs().max() > 1e-3 * own.max()


def test_kronecker_factors_are_moments_and_their_solve_is_the_dense_inverse() -> None:
    small, damping = small_run(), 0.07
    with opened(small) as run:
        matrix = KroneckerFactors(batch_size=5).of(run)
        rows = torch.randn(
            2, run.objective.vector.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        solved = matrix.solve(rows, damping)
    state = small.log.state(9)
    x = small.train.dataset.tensors[0]
    one = torch.ones(13, 1, dtype=torch.float64)
    hidden = (x @ state.params["0.weight"].T + state.params["0.bias"]).tanh()
    p = (hidden @ state.params["2.weight"].T + state.params["2.bias"]).softmax(1)
    # of the softmax: E[(p - e)(p - e)^T] = diag p - p p^T, back through the hidden layer
    of_logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    back = state.params["2.weight"][None] * (1 - hidden.square())[:, None]
    moments = (
        (torch.cat([x, one], 1), (back.transpose(1, 2) @ of_logits @ back).mean(0)),
        (torch.cat([hidden, one], 1), of_logits.mean(0)),
    )
    place = 0
    for block, (inputs, slopes) in zip(matrix.blocks, moments, strict=True):
        a = inputs.T @ inputs / 13
        assert (block.inputs - a).abs().max() <= 1e-12
        assert (block.slopes - slopes).abs().max() <= 1e-12
        ratio = ((a.trace() / len(a)) / (slopes.trace() / len(slopes))).sqrt()
        dense = torch.kron(
            slopes + damping**0.5 / ratio * torch.eye(len(slopes), dtype=torch.float64),
            a + damping**0.5 * ratio * torch.eye(len(a), dtype=torch.float64),
        )
        outputs, width = len(slopes), len(a) - 1
        size = outputs * width
        weight, bias = rows[:, place : place + size], rows[:, place + size : place + size + outputs]
        joined = torch.cat([weight.view(2, outputs, width), bias[..., None]], 2).reshape(2, -1)
        expected = (torch.linalg.inv(dense) @ joined.T).T.view(2, outputs, width + 1)
        found = solved[:, place : place + size].view(2, outputs, width)
        assert (found - expected[..., :-1]).abs().max() <= 1e-10 * expected.abs().max()
        found = solved[:, place + size : place + size + outputs]
        assert (found - expected[..., -1]).abs().max() <= 1e-10 * expected.abs().max()
        place += size + outputs
    assert place == rows.shape[1]


def test_kronecker_factors_of_convolutions_have_their_patches_and_channels() -> None:
    small = small_run(make=ConvolvedNet)
    with opened(small) as run:
        blocks = KroneckerFactors(batch_size=5).of(run).blocks
        assert [len(block.inputs) for block in blocks] == [4, 3, 9, 19]
        assert [len(block.slopes) for block in blocks] == [2, 4, 2, 3]
        last = blocks[-1]
        p = example_gradients(small, lambda y: y)[1].exp()
        slopes = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    assert (last.slopes - slopes).abs().max() <= 1e-12


def test_labels_that_the_loss_ignores_are_refused() -> None:
    small = small_run()
    small.train.dataset.tensors[1][3] = -100
    with opened(small) as run, pytest.raises(ConfigurationError, match=r"0 to 2.*leave it out"):
        ExactDiagonal().of(run)


def test_factors_see_an_output_as_it_was_before_it_is_changed_in_place() -> None:
    inside, outside = small_run(make=InPlaceNet), small_run(make=lambda: SmallNet(nn.ReLU()))
    both = []
    for small in (inside, outside):
        with opened(small) as run:
            both.append(KroneckerFactors().of(run).blocks)
    for own, expected in zip(*both, strict=True):
        assert torch.equal(own.inputs, expected.inputs)
        assert torch.equal(own.slopes, expected.slopes)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (NormalisedNet, r"1\.bias"),
        (TwiceNet, r"2\.weight"),
        *((make, "mix") for make in UNUSUAL[:2]),
        (BorrowedNet, r"2\.weight"),
    ],
)
def test_layers_that_have_no_factors_are_named(make: type[SmallNet], name: str) -> None:
    with opened(small_run(make=make)) as run, pytest.raises(ConfigurationError, match=f"{name}.*ExactDiagonal"):
        KroneckerFactors(batch_size=5).of(run)
