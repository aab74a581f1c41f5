"""Checkpointed parts move their buffers twice a step, since they are recomputed: scores against training again."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from tests.adjoint.test_held_constants import BATCH, EPOCHS, N, Net, data, scores, trained_again, worst_error


class Normalised(Net):
    """BatchNorm in a checkpointed part."""

    reentrant = True

    def __init__(self) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(4)

    def part(self, h: Tensor) -> Tensor:
        return self.norm(h)

    def between(self, h: Tensor) -> Tensor:
        return checkpoint(self.part, h, use_reentrant=self.reentrant) if self.training else self.part(h)


class Twice(Normalised):
    """One layer, twice in the part, and its statistics are a mean over all batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=None)

    def part(self, h: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.norm(h)))


class TwoParts(Normalised):
    """One layer in two parts, of which the last is recomputed first."""

    def between(self, h: Tensor) -> Tensor:
        return super().between(torch.tanh(super().between(h)))


class Centred(nn.Module):
    """Moves a buffer of its own, and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.centre.mul_(0.8).add_(h.mean(0), alpha=0.2)
        return h - self.centre


class OwnBuffer(Normalised):
    """Nothing of the part is saved, so that only the re-entrant kind runs it again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Centred()


class Input(Normalised):
    """No gradient comes back to the part, which is run once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super(Normalised, self).forward(super().between(x))

    def between(self, h: Tensor) -> Tensor:
        return h


def of_kind(kind: type[Normalised], *, reentrant: bool) -> type[Normalised]:
    return type(kind.__name__, (kind,), {"reentrant": reentrant})


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(
    ("kind", "reentrant"),
    [
        *((kind, way) for kind in (Normalised, OwnBuffer, Input) for way in (True, False)),
        (Twice, True),
        (TwoParts, False),
    ],
)
def test_scores_are_those_of_training_again(kind: type[Normalised], reentrant: bool, tmp_path: Path) -> None:
    own = of_kind(kind, reentrant=reentrant)
    assert worst_error(own, scores(own, tmp_path / "run", certificate="off")) < 1e-6


class Dropped(Normalised):
    """Random numbers that are drawn again, the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))


@pytest.mark.parametrize("reentrant", [True, False], ids=["re-entrant", "other"])
def test_every_step_leads_where_it_led(reentrant: bool, tmp_path: Path) -> None:
    values = scores(of_kind(Dropped, reentrant=reentrant), tmp_path / "run")  # each is compared with the record
    assert values.abs().max() > 0


def test_many_models_at_once_move_them_twice_too(tmp_path: Path) -> None:
    kind = of_kind(OwnBuffer, reentrant=True)
    loaders = DataLoader(data(N, 1), BATCH), DataLoader(data(5, 2), 5)
    module = kind()
    L.Trainer(
        accelerator="cpu", precision="64-true", max_epochs=EPOCHS, callbacks=[TrajectoryRecorder(tmp_path / "run")],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, *loaders)  # fmt: skip
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    truth = runner.counterfactuals(module, *loaders, log=tmp_path / "run", leave_out=[[0], [1, 4], [5]])
    ones = torch.ones(N, dtype=torch.float64)
    base = trained_again(kind, ones)
    without = [trained_again(kind, ones.index_fill(0, torch.tensor(ids), 0)) - base for ids in ([0], [1, 4], [5])]
    assert truth.at_once == 3
    torch.testing.assert_close(truth.values[:, 0], torch.tensor(without, dtype=torch.float64), rtol=1e-6, atol=0)
