"""Ways to draw batches and to end them: scores against the run written out and differentiated, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.testing import relative_error
from tests.runner.situations import LR, MOMENTUM, Module, Situation, apply_linear, labels, likelihoods, normal

pytestmark = pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
N, SIZE, EPOCHS = 9, 4, 2
DATA = TensorDataset(normal(N, 5), labels(N), torch.arange(N))


class Skipping(Module):
    """Returns no loss for every second batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


def repeated() -> DataLoader[Any]:
    return DataLoader(DATA, SIZE, sampler=WeightedRandomSampler(torch.arange(1.0, N + 1), N + 2))


def by_batches() -> DataLoader[Any]:
    return DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), SIZE, drop_last=True))


def by_lists() -> DataLoader[Any]:
    return DataLoader(DATA, batch_size=None, sampler=BatchSampler(RandomSampler(DATA), SIZE, drop_last=False))


def shuffled() -> DataLoader[Any]:
    return DataLoader(DATA, SIZE, shuffle=True)


def averaged(a: Tensor, b: Tensor, count: Tensor) -> Tensor:
    return 0.8 * a + 0.2 * b


def unrolled(
    start: dict[str, Tensor], journal: list[list[Tensor]], divisor: int = 1, keeps: float | None = None
) -> Tensor:
    """Differentiate the training on the noted ids, some batches a step, in the weights of the examples.

    With ``keeps``, the query is asked of the moving average of the weights after each step, which keeps that part.
    """
    x, y = normal(N, 5), labels(N)
    weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
    p = {n: v.clone().requires_grad_() for n, v in start.items()}
    velocity = {n: torch.zeros_like(v) for n, v in p.items()}
    average: dict[str, Tensor] = {}
    for batches in journal:
        losses = [(weights[i] * likelihoods(apply_linear(p, x[i]), y[i])).mean() / divisor for i in batches]
        grads = torch.autograd.grad(torch.stack(losses).sum(), list(p.values()), create_graph=True)
        velocity = {n: MOMENTUM * velocity[n] + g for n, g in zip(p, grads, strict=True)}
        p = {n: v - LR * velocity[n] for n, v in p.items()}
        if keeps is not None:
            average = {n: keeps * average[n] + (1 - keeps) * v for n, v in p.items()} if average else p
    query = likelihoods(apply_linear(average or p, normal(4, 5, seed=1)), labels(4, seed=1)).mean()
    return -torch.autograd.grad(query, weights)[0][:, None]


@pytest.mark.parametrize(
    ("loader", "kind", "settings"),
    [
        (by_batches, Module, {}),
        (repeated, Module, {}),
        (by_lists, Module, {}),
        (shuffled, Skipping, {}),
        (shuffled, Module, {"limit_train_batches": 2, "val_check_interval": 1}),
        (shuffled, Module, {"accumulate_grad_batches": 3}),
        (shuffled, Module, {"keeps": 0.8}),
    ],
    ids=["batch sampler", "with repetition", "lists", "no loss", "a part of an epoch", "accumulated", "averaged"],
)
def test_scores_are_the_derivative_of_the_run(
    loader: Any, kind: type[Module], settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    settings = dict(settings)
    keeps = settings.pop("keeps", None)
    more = [] if keeps is None else [WeightAveraging(avg_fn=averaged)]
    module, train = kind(Situation()).double(), loader()
    start = {n: v.detach().clone() for n, v in module.named_parameters()}
    held_out = DataLoader(TensorDataset(normal(4, 5, seed=1), labels(4, seed=1)), 4)
    module.journal = []
    pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", precision="64-true",
        callbacks=[TrajectoryRecorder(tmp_path / "run"), *more], num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    ).fit(module, train, held_out)  # fmt: skip
    each = settings.get("accumulate_grad_batches", 1)
    ids, module.journal = [noted for noted, _ in module.journal], None
    assert len(ids) == EPOCHS * (len(ids) // EPOCHS)
    steps = [ids[t : t + each] for t in range(0, len(ids), each)]
    scores = InfluenceRunner(accelerator="cpu", progress=False).run(module, train, held_out, log=tmp_path / "run")
    assert relative_error(scores.values, unrolled(start, steps, each, keeps)) < 1e-9
