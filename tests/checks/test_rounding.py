"""Checks where rounding has the say: gradients that are zero but for it, and steps that ask for float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder
from lightning_sgdinf.errors import CertificateError, StepMismatchError
from lightning_sgdinf.replay import VanishingGradient

N, WIDTH = 12, 8
PRECISIONS: dict[torch.dtype, Any] = {torch.float32: "32-true", torch.float64: "64-true", torch.bfloat16: "bf16-true"}


class Attentive(L.LightningModule):
    """The bias of its keys has no gradient, and lies in one tensor with those of queries and values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.training_step(batch, batch_idx)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Tampered(Attentive):
    """Changes the gradient of one element of the queries' bias, which is no rounding."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        bias = self.attention.in_proj_bias
        assert bias is not None
        assert bias.grad is not None
        bias.grad[0] *= -1


class InFloat32(Attentive):
    """Takes its loss of what it has asked for in float32, as causal language models do."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x).float()


class NormInFloat32(Attentive):
    """Computes a norm of its own in float32, as RMS norms of language models do, and goes on as it was."""

    def logits(self, x: Tensor) -> Tensor:
        z = super().logits(x)
        wide = z.to(torch.float32)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(z.dtype)


class Normalised(Attentive):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3))  # type: ignore[assignment]


class WrongInFloat32(torch.autograd.Function):
    """A square whose gradient is right in float64 alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        slope = 2 * x if x.dtype == torch.float64 else 2 * x + 0.5 * (x - x.detach())
        return grad * slope


class WrongSecondDerivative(Attentive):
    def logits(self, x: Tensor) -> Tensor:
        z = super().logits(x)
        return z + 10 * WrongInFloat32.apply(z)  # type: ignore[no-untyped-call]


def scores(model: Attentive, path: Path, dtype: torch.dtype = torch.float32, precision: Any = None) -> Scores:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 5, WIDTH, generator=generator).to(dtype), torch.randint(0, 3, (N,), generator=generator)
    loaders = DataLoader(TensorDataset(x, y), 4), DataLoader(TensorDataset(x.flip(0), y), N)
    L.Trainer(
        accelerator="cpu", max_epochs=2, precision=precision or PRECISIONS[dtype], callbacks=[TrajectoryRecorder(path)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, *loaders)  # fmt: skip
    return InfluenceRunner(accelerator="cpu", progress=False).run(model, *loaders, log=path)


def test_elements_that_rounding_drives_are_no_mismatch(tmp_path: Path) -> None:
    certificate = scores(Attentive(), tmp_path / "run").certificate
    assert certificate is not None
    assert certificate.step_replay is not None
    assert certificate.step_replay.steps == 6


def test_another_element_of_the_same_tensor_is_one(tmp_path: Path) -> None:
    with pytest.raises(StepMismatchError, match="in_proj_bias"):
        scores(Tampered(), tmp_path / "run")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [InFloat32, NormInFloat32], ids=lambda kind: kind.__name__)
def test_a_step_that_asks_for_float32_is_checked_in_float64(
    kind: type[Attentive], dtype: torch.dtype, tmp_path: Path
) -> None:
    certificate = scores(kind(), tmp_path / "run", dtype).certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.relative_error < 1e-3
    assert certificate.gradient_check.precision == "float64"
    named = {check.name: check.precision for check in certificate.further}
    assert named == {"query": "float32", "swap check": "float32"}


def test_a_small_error_of_the_derivative_in_float32_is_no_rounding(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"in float64 agrees .* rounding explains"):
        scores(WrongSecondDerivative(), tmp_path / "run")


class Plain(Attentive):
    def logits(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x).mean(1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.3)


class WrongAndPlain(Plain):
    def logits(self, x: Tensor) -> Tensor:
        return 3 * WrongEverywhere.apply(super().logits(x))  # type: ignore[no-untyped-call, no-any-return]


class WrongEverywhere(WrongInFloat32):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * 2 * x.detach()


def test_a_run_in_bfloat16_is_checked_in_float64(tmp_path: Path) -> None:
    certificate = scores(Plain(), tmp_path / "run", torch.bfloat16).certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.precision == "float64"
    assert certificate.gradient_check.relative_error < 0.05


def test_a_wrong_derivative_in_bfloat16_is_no_rounding(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="gradient check failed"):
        scores(WrongAndPlain(), tmp_path / "run", torch.bfloat16)


def test_what_mixed_precision_does_to_the_check_is_said(tmp_path: Path) -> None:
    certificate = scores(Plain(), tmp_path / "run", precision="bf16-mixed").certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.precision == "float32"
    coarse = replace(certificate, gradient_check=replace(certificate.gradient_check, relative_error=0.03))
    assert any("3 % apart. The run cannot be taken again in float64 (mixed precision" in w for w in coarse.warnings)


class Instances(Attentive):
    """The biases of a convolution before a norm of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv1d(5, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten())
        self.attention, self.head = nn.Identity(), nn.Linear(4 * (WIDTH - 2), 3)  # type: ignore[assignment]

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.before(x))


class UnderRmsProp(Normalised):
    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=1e-2)


class Decayed(Normalised):
    """A penalty of the optimizer's own moves a bias of which rounding is the whole gradient."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


class Constant(torch.autograd.Function):
    """A square whose gradient claims not to depend on where it is taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2 * ctx.saved_tensors[0].detach()


class NormalisedAndWrong(Normalised):
    def logits(self, x: Tensor) -> Tensor:
        z = super().logits(x)
        return z + Constant.apply(z)  # type: ignore[no-untyped-call]


BEFORE_BATCH_NORM = "attention.in_proj_bias, attention.out_proj.bias, head.0.bias"
HELD = {
    Attentive: "attention.in_proj_bias",
    Normalised: BEFORE_BATCH_NORM,
    Instances: "before.0.bias",
    UnderRmsProp: BEFORE_BATCH_NORM,
    Decayed: BEFORE_BATCH_NORM,
}


@pytest.mark.parametrize("kind", HELD, ids=lambda kind: kind.__name__)
def test_steps_that_rounding_makes_are_held_as_recorded(kind: type[Attentive], tmp_path: Path) -> None:
    """A bias before a norm has no gradient but rounding, of which optimizers make steps; the rest is exact."""
    certificate = scores(kind(), tmp_path / "run").certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.relative_error <= 1e-3 == certificate.gradient_check.tolerance
    assert any(
        f"elements of {HELD[kind]} have a gradient that is zero but for rounding" in n for n in certificate.notes
    )


def test_a_wrong_derivative_beside_such_elements_is_no_rounding(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="gradient check failed"):
        scores(NormalisedAndWrong(), tmp_path / "run")


def test_holding_an_element_that_has_a_gradient_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check adds what was held to a gradient of its own, so that holding too much is seen."""

    def too_much(run: Any) -> VanishingGradient:
        place = run.objective.vector.names.index("head.bias")
        return VanishingGradient({place: torch.ones(3, dtype=torch.bool)})

    monkeypatch.setattr("lightning_sgdinf.scoring.walk_job.find_vanishing", too_much)
    monkeypatch.setattr("lightning_sgdinf.replay.vanishing.SMALL", 1.0)
    with pytest.raises(CertificateError, match="gradient check failed"):
        scores(Attentive(), tmp_path / "run")


def test_no_more_is_held_in_a_step_than_is_small_there() -> None:
    held = VanishingGradient({1: torch.tensor([True, True, False])})
    grads = [torch.tensor([1.0]), torch.tensor([1e-8, 1e-2, 1e-8])]
    assert held.in_step(grads)[1].tolist() == [True, False, False]
