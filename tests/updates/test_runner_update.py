"""`InfluenceRunner.update` on a run of a real Trainer, against training by hand without the examples.

The loop by hand has its own formulas for model, gradient and optimizer, and knows of the run what the module itself
saw: the ids of each batch, noted by its own ``training_step``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay, FreshTraining, Updated, load_state

N, SIZE, EPOCHS, PER_EPOCH = 14, 4, 3, 4
RATE, MOMENTUM, DECAY, FALL = 0.3, 0.8, 0.01, 0.9
DROP, RELABEL = (2, 5, 11), {3: 2, 8: 0}


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.journal: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, ids = batch
        self.journal.append(ids.tolist())
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, FALL)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
        y = torch.arange(N) % 3
        self.train, self.validation = TensorDataset(x, y, torch.arange(N)), TensorDataset(x[:6], y[:6])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=SIZE, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, batch_size=3)


@dataclass(frozen=True)
class Fit:
    """A recorded fit: the trained model, what it was before, and the ids of every batch."""

    model: Net
    data: Data
    path: Path
    start: Mapping[str, Tensor]
    journal: list[list[int]]

    def update(self, update: Any, selection: Selection, *, model: Any = None, by_loaders: bool = False) -> Updated:
        given: dict[str, Any] = {"datamodule": self.data}
        if by_loaders:
            given = {"train_dataloaders": self.data.train_dataloader(), "val_dataloaders": self.data.val_dataloader()}
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        return runner.update(model or self.model, **given, log=self.path, update=update, selection=selection)


def fit(folder: Path, keep: str = "every_step") -> Fit:
    pl.seed_everything(5, verbose=False)
    model, data = Net().double(), Data()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    path = folder / "run.tlog"
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        precision="64-true",
        callbacks=[TrajectoryRecorder(path, keep=keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return Fit(model, data, path, start, list(model.journal))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return fit(tmp_path_factory.mktemp("run"))


def by_hand(run: Fit, selection: Selection, first: int) -> dict[str, Tensor]:
    """Train with the selection in force from a step on: kept losses over the batch's size, momentum, weight decay."""
    x, y, _ = run.data.train.tensors
    other = y.clone()
    for example, label in selection.relabel.items():
        other[example] = label
    params, velocity = dict(run.start), {n: torch.zeros_like(v) for n, v in run.start.items()}
    for t, ids in enumerate(run.journal):
        changed = t >= first
        kept = [j for j in ids if not (changed and j in selection.drop)]
        labels = (other if changed else y)[kept]
        hidden = torch.tanh(x[kept] @ params["net.0.weight"].T + params["net.0.bias"])
        slopes = torch.softmax(hidden @ params["net.2.weight"].T + params["net.2.bias"], 1)
        slopes = (slopes - torch.eye(3, dtype=torch.float64)[labels]) / len(ids)
        inner = slopes @ params["net.2.weight"] * (1 - hidden**2)
        gradient = {
            "net.0.weight": inner.T @ x[kept],
            "net.0.bias": inner.sum(0),
            "net.2.weight": slopes.T @ hidden,
            "net.2.bias": slopes.sum(0),
        }
        velocity = {n: MOMENTUM * velocity[n] + gradient[n] + DECAY * params[n] for n in params}
        params = {n: params[n] - RATE * FALL**t * velocity[n] for n in params}
    return params


def gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def trained(run: Fit) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in run.model.named_parameters()}


def test_the_loop_by_hand_is_the_fit(fitted: Fit) -> None:
    assert [len(ids) for ids in fitted.journal] == [4, 4, 4, 2] * EPOCHS
    assert gap(by_hand(fitted, Selection(), 0), trained(fitted)) < 1e-12


@pytest.mark.parametrize("by_loaders", [False, True], ids=["data module", "loaders"])
@pytest.mark.parametrize(("epochs", "first", "passes"), [("all", 0, 3.0), (1, 8, 1.0), (2, 4, 2.0)])
@pytest.mark.parametrize(
    "selection",
    [Selection(drop=DROP), Selection(relabel=RELABEL), Selection(drop=DROP, relabel=RELABEL)],
    ids=["drop", "relabel", "both"],
)
def test_an_update_is_training_without_the_examples(
    fitted: Fit, selection: Selection, epochs: Any, first: int, passes: float, by_loaders: bool
) -> None:
    expected = by_hand(fitted, selection, first)
    assert gap(expected, trained(fitted)) > 1e-4, "the test is degenerate"
    updated = fitted.update(CounterfactualReplay(epochs), selection, by_loaders=by_loaders)
    assert gap(updated.state.params, expected) < 1e-12
    assert updated.epochs == passes
    assert updated.seconds > 0
    fresh = Net().double()
    load_state(fresh, updated.state)
    assert gap({n: p.detach() for n, p in fresh.named_parameters()}, expected) < 1e-12


@pytest.mark.parametrize(("epochs", "first", "passes"), [("all", 0, 42 / 14), (1, 8, (14 + 4 + 2) / 14)])
def test_states_that_were_not_kept_are_made_again(
    tmp_path: Path, fitted: Fit, epochs: Any, first: int, passes: float
) -> None:
    sparse = fit(tmp_path, keep="every(3)")
    assert sparse.journal == fitted.journal
    selection = Selection(drop=DROP, relabel=RELABEL)
    updated = sparse.update(CounterfactualReplay(epochs), selection)
    assert gap(updated.state.params, by_hand(sparse, selection, first)) < 1e-12
    assert gap(updated.state.params, fitted.update(CounterfactualReplay(epochs), selection).state.params) == 0.0
    assert updated.epochs == passes, "the steps from state 6 to state 8 count, too"


@pytest.mark.parametrize("epochs", ["all", 1, 3])
def test_an_empty_selection_is_the_fit_bit_for_bit(fitted: Fit, epochs: Any) -> None:
    assert gap(fitted.update(CounterfactualReplay(epochs), Selection()).state.params, trained(fitted)) == 0.0


def test_the_given_model_is_left_alone_and_its_weights_are_not_read(fitted: Fit) -> None:
    other = Net().double()
    other.net[0].eval()
    other.net[2].requires_grad_(False)
    other.net[0].bias.grad = torch.ones(4, dtype=torch.float64)
    journal = other.journal
    before = {n: (p.data_ptr(), p.detach().clone(), p.requires_grad) for n, p in other.named_parameters()}
    random = torch.get_rng_state()
    selection = Selection(drop=DROP)
    updated = fitted.update(CounterfactualReplay(), selection, model=other)
    assert gap(updated.state.params, by_hand(fitted, selection, 0)) < 1e-12
    for name, parameter in other.named_parameters():
        place, value, flag = before[name]
        assert (parameter.data_ptr(), parameter.requires_grad) == (place, flag)
        assert torch.equal(parameter, value)
    assert [part.training for part in other.net] == [False, True, True]
    assert torch.equal(other.net[0].bias.grad, torch.ones(4, dtype=torch.float64))
    assert other.net[2].weight.grad is None
    assert other.journal is journal
    assert journal == []
    assert torch.equal(torch.get_rng_state(), random)


def test_fresh_training_is_given_the_cleansed_data_set(fitted: Fit) -> None:
    given: list[tuple[int, int]] = []

    def remember(dataset: Any) -> nn.Module:
        given.extend((int(dataset[i][2]), int(dataset[i][1])) for i in range(len(dataset)))
        return Net().double()

    def replace(item: Any, label: int) -> Any:
        x, _, example = item
        return x, torch.tensor(label), example

    updated = fitted.update(FreshTraining(remember, replace), Selection(drop=DROP, relabel=RELABEL))
    assert given == [(j, RELABEL.get(j, j % 3)) for j in range(N) if j not in DROP]
    assert updated.state.params.keys() == fitted.start.keys()
    assert updated.epochs is None


@pytest.mark.parametrize("selection", [Selection(drop=(0, N)), Selection(relabel={N: 1})], ids=["drop", "relabel"])
@pytest.mark.parametrize(
    "update", [CounterfactualReplay(), FreshTraining(lambda dataset: Net())], ids=["replay", "fresh"]
)
def test_ids_that_the_run_does_not_have_are_refused(fitted: Fit, update: Any, selection: Selection) -> None:
    with pytest.raises(ConfigurationError, match=r"expected ids below 14, .* got \[14\]"):
        fitted.update(update, selection)


@pytest.mark.parametrize("epochs", [0, 4, "last"])
def test_epochs_that_were_not_recorded_are_refused(fitted: Fit, epochs: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"epochs: expected 1 to 3 .* or 'all', got"):
        fitted.update(CounterfactualReplay(epochs), Selection())


def test_the_first_state_is_enough_for_all_epochs(tmp_path: Path) -> None:
    late, selection = fit(tmp_path, keep="last_epochs(1)"), Selection(drop=DROP)
    for epochs, first, steps in ((1, 8, 0), (2, 4, 4), ("all", 0, 0)):
        updated = late.update(CounterfactualReplay(epochs), selection)
        assert gap(updated.state.params, by_hand(late, selection, first)) < 1e-12
        again = sum(len(ids) for ids in late.journal[first - steps :])
        assert updated.epochs == again / N, "states 1 to 7 were not kept"


def test_a_log_without_an_early_state_says_what_to_record(tmp_path: Path) -> None:
    final = fit(tmp_path, keep="final")
    for epochs in (1, "all"):
        with pytest.raises(StateNotStoredError, match=r"keep='final'\) is state 12\. Record with keep='every_step'"):
            final.update(CounterfactualReplay(epochs), Selection(drop=DROP))
