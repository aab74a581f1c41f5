"""Constants of a gradient, buffers that move, hooks on gradients: scores against training again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import UnsupportedRunError, UntappedLossError

N, BATCH, EPOCHS = 6, 3, 2


class Net(L.LightningModule):
    """Two layers with something in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.between(torch.tanh(self.a(x)))))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y, reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(*batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


class Spectral(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.a)


class OldSpectral(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a = old_spectral_norm(self.a, n_power_iterations=2)


class Centre(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.centre.mul_(0.8).add_(h.mean(0), alpha=0.2)
        return h - self.centre


class AssignedCentre(Centre):
    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.centre = 0.8 * self.centre + 0.2 * h.detach().mean(0)
        return h - self.centre


class Codebook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(3, 4))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("counts", torch.ones(3))

    def between(self, h: Tensor) -> Tensor:
        nearest = (h[:, None] - self.codes[None]).square().sum(-1).argmin(1)
        codes, chosen = self.codes[nearest], F.one_hot(nearest, 3).to(h)
        if self.training:
            with torch.no_grad():
                self.counts.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
                self.sums.mul_(0.9).add_(chosen.T @ h, alpha=0.1)
                self.codes.copy_(self.sums / self.counts[:, None])
        return h + (codes - h).detach()


class Queue(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(4, 4), dim=0))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def between(self, h: Tensor) -> Tensor:
        own = F.normalize(h, dim=1)
        like = own @ self.keys.clone().detach()
        if self.training:
            with torch.no_grad():
                place = int(self.place)
                count = min(len(own), 4 - place)
                self.keys[:, place : place + count] = own[:count].T
                self.place[0] = (place + count) % 4
        return h + like


class Instances(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, track_running_stats=True, affine=True, momentum=0.3)

    def between(self, h: Tensor) -> Tensor:
        return self.norm(h.view(-1, 2, 2)).flatten(1)


class OwnBatchNorm(Net):
    """Statistics of training read in training (batch renormalisation)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def between(self, h: Tensor) -> Tensor:
        if not self.training:
            return (h - self.mean) / self.var.sqrt()
        mean, spread = h.mean(0), h.std(0) + 0.1
        r = (spread.detach() / self.var.sqrt()).clamp(0.3, 3)
        d = ((mean.detach() - self.mean) / self.var.sqrt()).clamp(-3, 3)
        with torch.no_grad():
            self.mean += 0.2 * (mean - self.mean)
            self.var += 0.2 * (spread.square() - self.var)
        return (h - mean) / spread * r + d


class FunctionalBatchNorm(OwnBatchNorm):
    def between(self, h: Tensor) -> Tensor:
        return F.batch_norm(h, self.mean, self.var, None, None, self.training, 0.2)


class Detached(Net):
    """Keeps what it has detached, too."""

    def between(self, h: Tensor) -> Tensor:
        self.seen = 0.9 * getattr(self, "seen", 0.0) + h.detach().mean()
        self.array = h.detach().numpy()
        return h + h.detach().square() + h.data


class WithoutGradients(Net):
    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            factor = F.linear(h, self.b.weight).softmax(-1)[:, :1]
        return h * factor


class Focal(Net):
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        each = super().losses(x, y)
        return each * (1 - torch.exp(-each).detach()).square()


class SelfTarget(Net):
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self(x)
        with torch.no_grad():
            target = 0.9 * logits.softmax(-1) + 0.1 * F.one_hot(y, 3)
            F.cross_entropy(logits, y)
        return F.cross_entropy(1.1 * logits, target, reduction="none")


class ParameterHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.weight.register_hook(lambda g: 0.5 * g)


class InPlaceHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.weight.register_hook(lambda g: g.mul_(0.5))


class ModuleHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_full_backward_hook(lambda module, of_input, of_output: tuple(0.5 * g for g in of_input))


class ModulePreHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_full_backward_pre_hook(lambda module, of_output: tuple(0.5 * g for g in of_output))


class ActivationHook(Net):
    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: 0.5 * g)
        return h


RIGHT = [
    Spectral, OldSpectral, Centre, AssignedCentre, Codebook, Queue, Instances, OwnBatchNorm, FunctionalBatchNorm,
    Detached, WithoutGradients, Focal, SelfTarget, ParameterHook, InPlaceHook, ModuleHook, ModulePreHook,
    ActivationHook,
]  # fmt: skip


def data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 3, (count,), generator=generator))


def scores(kind: type[Net], path: Path, *, precision: str = "64-true", **settings: Any) -> Tensor:
    dtype = torch.float64 if precision == "64-true" else torch.float32
    train, validation = (TensorDataset(d.tensors[0].to(dtype), d.tensors[1]) for d in (data(N, 1), data(5, 2)))
    loaders = DataLoader(train, BATCH), DataLoader(validation, 5)
    model = kind()
    L.Trainer(
        accelerator="cpu", precision=precision, max_epochs=EPOCHS, callbacks=[TrajectoryRecorder(path)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, *loaders)  # fmt: skip
    runner = InfluenceRunner(accelerator="cpu", progress=False, **settings)
    return runner.run(model, *loaders, log=path).values[:, 0]


def trained_again(kind: type[Net], weights: Tensor) -> float:
    """Train in float64 with weights on the examples' losses, in a loop of its own; the validation loss."""
    model = kind().double()
    optimizer = model.configure_optimizers()
    x, y = data(N, 1).tensors
    for start in [*range(0, N, BATCH)] * EPOCHS:
        rows = slice(start, start + BATCH)
        optimizer.zero_grad()
        (model.losses(x[rows], y[rows]) * weights[rows]).mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return float(model.validation_step(data(5, 2).tensors, 0))


def worst_error(kind: type[Net], values: Tensor) -> float:
    """Compare the largest score with a central difference, as a part of it."""
    example = int(values.abs().argmax())

    def at(weight: float) -> float:
        weights = torch.ones(N, dtype=torch.float64)
        weights[example] = weight
        return trained_again(kind, weights)

    slope = -(at(1 + 1e-5) - at(1 - 1e-5)) / 2e-5
    return abs(float(values[example]) - slope) / abs(slope)


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_scores_are_those_of_training_again(kind: type[Net], tmp_path: Path) -> None:
    assert worst_error(kind, scores(kind, tmp_path / "run", certificate="off")) < 1e-6


@pytest.mark.parametrize("kind", [Spectral, ParameterHook])
def test_in_float32_as_in_float64(kind: type[Net], tmp_path: Path) -> None:
    assert worst_error(kind, scores(kind, tmp_path / "run", precision="32-true")) < 1e-4


class NotNumbers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("notes", torch.tensor([torch.nan, -torch.inf, 0.0]))

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.notes[2] += h.detach().mean()
        return h


def test_nan_and_infinity_in_buffers_are_no_difference(tmp_path: Path) -> None:
    assert worst_error(NotNumbers, scores(NotNumbers, tmp_path / "run")) < 1e-6


def hooked(hook: Callable[[Tensor], Tensor], register: str = "register_hook") -> type[Net]:
    class Hooked(Net):
        def __init__(self) -> None:
            super().__init__()
            getattr(self.a.weight, register)(hook)

    return Hooked


def test_a_hook_without_a_graph_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedRunError, match=r"gradient hook on the parameter a\.weight"):
        scores(hooked(lambda g: 0.5 * g.detach()), tmp_path / "run")


def test_a_hook_that_bends_the_gradient_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UntappedLossError, match=r"gradient hook on the parameter a\.weight"):
        scores(hooked(lambda g: g.clamp(-1e-3, 1e-3)), tmp_path / "run")


def test_a_hook_on_summed_gradients_is_refused_by_name(tmp_path: Path) -> None:
    def halve(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    with pytest.raises(UnsupportedRunError, match="register_post_accumulate_grad_hook"):
        scores(hooked(halve, "register_post_accumulate_grad_hook"), tmp_path / "run")  # type: ignore[arg-type]
