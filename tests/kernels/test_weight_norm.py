"""Weight normalisation: torch's fused operation against its formula, and scores against the training written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.kernels.weight_norm import normalise_weight
from lightning_sgdinf.testing import relative_error

N, BATCH, EPOCHS, RATE = 12, 4, 3, 0.3


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_the_formula_is_the_operation_with_a_right_second_derivative(dim: int) -> None:
    torch.manual_seed(0)
    v = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    g = (torch.norm_except_dim(v, 2, dim).detach() + 0.3).requires_grad_()
    fused, formula = torch._weight_norm(v, g, dim), normalise_weight(v, g, dim)
    assert torch.allclose(fused, formula, rtol=1e-14)
    slopes = [torch.autograd.grad(w.pow(3).sum(), (v, g)) for w in (fused, formula)]
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*slopes, strict=True))
    assert torch.autograd.gradgradcheck(lambda v, g: normalise_weight(v, g, dim).pow(2), (v, g))


class Normed(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), weight_norm(nn.Linear(4, 3))).double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


def data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 3, (count,), generator=generator))


def written_out(train: TensorDataset, validation: TensorDataset) -> Tensor:
    """Scores by autograd through the run, ``g v / |v|`` by elementary operations."""
    names, params = zip(
        *((n, p.detach().clone().requires_grad_()) for n, p in Normed().named_parameters()), strict=True
    )
    weights = torch.ones(N, dtype=torch.float64, requires_grad=True)

    def logits(values: Any, x: Tensor) -> Tensor:
        at = dict(zip(names, values, strict=True))

        def layer(number: int, z: Tensor) -> Tensor:
            own = f"net.{number}.parametrizations.weight.original"
            v = at[f"{own}1"]
            return F.linear(z, at[f"{own}0"] * v / v.square().sum(1, keepdim=True).sqrt(), at[f"net.{number}.bias"])

        return layer(2, torch.tanh(layer(0, x)))

    x, y = train.tensors
    for start in [*range(0, N, BATCH)] * EPOCHS:
        rows = slice(start, start + BATCH)
        each = F.cross_entropy(logits(params, x[rows]), y[rows], reduction="none")
        grads = torch.autograd.grad((each * weights[rows]).mean(), params, create_graph=True)
        params = tuple(p - RATE * g for p, g in zip(params, grads, strict=True))
    x, y = validation.tensors
    return -torch.autograd.grad(F.cross_entropy(logits(params, x), y), weights)[0][:, None]


def test_scores_are_those_of_the_formula(tmp_path: Path) -> None:
    train, validation = data(N, 1), data(9, 2)
    loaders = DataLoader(train, BATCH), DataLoader(validation, 9)
    L.Trainer(
        accelerator="cpu", precision="64-true", max_epochs=EPOCHS, callbacks=[TrajectoryRecorder(tmp_path / "run")],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Normed(), *loaders)  # fmt: skip
    scores = InfluenceRunner(accelerator="cpu", progress=False).run(Normed(), *loaders, log=tmp_path / "run")
    assert relative_error(scores.values, written_out(train, validation)) < 1e-10
