"""Gradients that hooks change between the backward pass and the step: named, with ways out that work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import StepMismatchError
from lightning_sgdinf.estimators import FinalParameters
from lightning_sgdinf.testing import relative_error
from tests.runner.situations import LR, MOMENTUM, Module, Situation, apply_linear, labels, likelihoods, normal

N, SIZE, NORM = 8, 4, 0.3


class InAHook(Module):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), NORM)


class AfterBackward(Module):
    def on_after_backward(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), NORM)


class ByTorch(Module):
    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), NORM)


class ByLightning(Module):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=NORM, gradient_clip_algorithm="norm")


class Halving(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pl_module.net.weight.grad.mul_(0.5)


class Hooked(Module):
    """Halves the same gradient in a way that is repeated."""

    def __init__(self, situation: Situation) -> None:
        super().__init__(situation)
        self.net.weight.register_hook(lambda grad: 0.5 * grad)  # type: ignore[union-attr,operator]


class Trained:
    def __init__(self, kind: type[Module], folder: Path, callbacks: tuple[Any, ...] = (), **settings: Any) -> None:
        torch.manual_seed(0)
        self.module, self.path = kind(Situation()).double(), folder / "run.tlog"
        self.before = {n: p.detach().clone() for n, p in self.module.named_parameters()}
        self.train = DataLoader(TensorDataset(normal(N, 5), labels(N), torch.arange(N)), SIZE)
        self.held_out = DataLoader(TensorDataset(normal(4, 5, seed=1), labels(4, seed=1)), 4)
        pl.Trainer(
            max_epochs=2, accelerator="cpu", precision="64-true", callbacks=[TrajectoryRecorder(self.path), *callbacks],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
        ).fit(self.module, self.train, self.held_out)  # fmt: skip

    def ask(self, method: str = "run", **more: Any) -> Any:
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        return getattr(runner, method)(self.module, self.train, self.held_out, log=self.path, **more)

    def unrolled(self, norm: float, factor: float) -> Tensor:
        """Scores of the run written out, with gradients clipped to a norm, those of the matrix times a factor."""
        x, y, weights = normal(N, 5), labels(N), torch.ones(N, dtype=torch.float64, requires_grad=True)
        p = {n: v.clone().requires_grad_() for n, v in self.before.items()}
        velocity = {n: torch.zeros_like(v) for n, v in p.items()}
        for t in range(2 * N // SIZE):
            ids = torch.arange(SIZE) + SIZE * (t % (N // SIZE))
            loss = (weights[ids] * likelihoods(apply_linear(p, x[ids]), y[ids])).mean()
            grads = dict(zip(p, torch.autograd.grad(loss, list(p.values()), create_graph=True), strict=True))
            grads["net.weight"] = factor * grads["net.weight"]
            size = torch.cat([g.reshape(-1) for g in grads.values()]).norm() + 1e-6
            scale = (norm / size).clamp(max=1)
            velocity = {n: MOMENTUM * velocity[n] + scale * g for n, g in grads.items()}
            p = {n: v - LR * velocity[n] for n, v in p.items()}
        query = likelihoods(apply_linear(p, normal(4, 5, seed=1)), labels(4, seed=1)).mean()
        return -torch.autograd.grad(query, weights)[0][:, None]


@pytest.mark.parametrize("method", ["run", "counterfactuals"])
@pytest.mark.parametrize(
    ("kind", "callbacks", "hook"),
    [
        (InAHook, (), "on_before_optimizer_step"),
        (AfterBackward, (), "on_after_backward"),
        (ByTorch, (), "configure_gradient_clipping"),
        (Module, (Halving(),), "Halving.on_before_optimizer_step"),
    ],
    ids=["before the step", "after backward", "own clipping", "callback"],
)
def test_what_hooks_do_to_gradients_is_named(
    kind: type[Module], callbacks: tuple[Any, ...], hook: str, method: str, tmp_path: Path
) -> None:
    run = Trained(kind, tmp_path, callbacks)
    with pytest.raises(StepMismatchError, match=f"This run has {hook}, between the backward pass and the step"):
        run.ask(method)
    if method == "run":
        assert run.ask(estimator=FinalParameters()).values.abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "settings", "norm", "factor"),
    [
        (Module, {"gradient_clip_val": NORM}, NORM, 1.0),
        (ByLightning, {}, NORM, 1.0),
        (Hooked, {}, 1e9, 0.5),
    ],
    ids=["Trainer", "clip_gradients", "register_hook"],
)
def test_the_ways_out_are_right(
    kind: type[Module], settings: dict[str, Any], norm: float, factor: float, tmp_path: Path
) -> None:
    run = Trained(kind, tmp_path, **settings)
    assert relative_error(run.ask().values, run.unrolled(norm, factor)) < 1e-9
