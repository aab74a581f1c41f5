"""Loaders in a container: their batches come in one, which scores of single examples have no use for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.testing import relative_error
from tests.runner.situations import LR, MOMENTUM, Module, Situation, apply_linear, labels, likelihoods, normal

ONE, OTHER = (TensorDataset(normal(n, 5, seed=n), labels(n, seed=n)) for n in (6, 3))


class Nested(Module):
    """Adds up the losses of what loaders gave."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = batch.values() if isinstance(batch, dict) else batch
        if isinstance(batch, list) and isinstance(batch[0], Tensor):
            parts = [batch]
        losses = [F.cross_entropy(self.net(x), y) for x, y in filter(None, parts)]  # type: ignore[operator]
        return torch.stack(losses).sum()


def scored(folder: Path, loaders: Any) -> Scores:
    torch.manual_seed(0)
    module, path = Nested(Situation()).double(), folder / "run.tlog"
    held_out = DataLoader(TensorDataset(normal(4, 5, seed=1), labels(4, seed=1)), 4)
    pl.Trainer(
        max_epochs=2, accelerator="cpu", precision="64-true", callbacks=[TrajectoryRecorder(path)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, loaders, held_out)  # fmt: skip
    return InfluenceRunner(accelerator="cpu", progress=False).run(module, loaders, held_out, log=path)


def of(data: Any) -> DataLoader[Any]:
    return DataLoader(data, 3)


@pytest.mark.parametrize(
    "loaders",
    [
        lambda: CombinedLoader({"one": of(ONE), "other": of(OTHER)}, "min_size"),
        lambda: CombinedLoader([of(ONE), of(OTHER)], "max_size"),
        lambda: {"one": of(ONE), "other": of(OTHER)},
        lambda: CombinedLoader({"only": of(ONE)}),
        lambda: [of(ONE)],
    ],
    ids=["min_size", "max_size", "dict", "CombinedLoader of one", "list of one"],
)
def test_loaders_in_a_container_are_refused(loaders: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedRunError, match=r"ConcatDataset"):
        scored(tmp_path, loaders())


def test_the_way_out_is_right(tmp_path: Path) -> None:
    """Scores of a loader of both data sets are the derivative of the run written out."""
    data = ConcatDataset([ONE, OTHER])
    scores = scored(tmp_path, of(data))
    torch.manual_seed(0)
    start = Nested(Situation()).double()
    p = {n: v.detach().clone().requires_grad_() for n, v in start.named_parameters()}
    velocity, weights = {n: torch.zeros_like(v) for n, v in p.items()}, torch.ones(9, requires_grad=True).double()
    x, y = (torch.stack([data[j][k] for j in range(9)]) for k in (0, 1))
    for t in range(6):
        ids = torch.arange(3) + 3 * (t % 3)
        loss = (weights[ids] * likelihoods(apply_linear(p, x[ids]), y[ids])).mean()
        grads = torch.autograd.grad(loss, list(p.values()), create_graph=True)
        velocity = {n: MOMENTUM * velocity[n] + g for n, g in zip(p, grads, strict=True)}
        p = {n: v - LR * velocity[n] for n, v in p.items()}
    query = likelihoods(apply_linear(p, normal(4, 5, seed=1)), labels(4, seed=1)).mean()
    assert relative_error(scores.values, -torch.autograd.grad(query, weights)[0][:, None]) < 1e-9
