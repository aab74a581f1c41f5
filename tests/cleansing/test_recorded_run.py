"""The whole chain on a run of Lightning's: recorded, ranked, cleansed with a validated count, trained again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, Scores, TrajectoryRecorder
from lightning_sgdinf.cleansing import (
    CleansingContext,
    ModelPredictions,
    Relabel,
    Selection,
    StateEvaluation,
    Validated,
    cleansing_curve,
    halve,
    held_out_value,
)
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import CounterfactualReplay, Retraining, state_of

TRAIN, BATCH, EPOCHS, RATE, MOMENTUM = 40, 8, 4, 0.2, 0.9
FLIPPED = (3, 8, 17, 21, 30, 36)


class Logistic(L.LightningModule):
    """A linear classifier without anything that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM)


def clouds(count: int, seed: int) -> TensorDataset:
    """Two clouds of points, one per class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return TensorDataset(points + 1.5 * (2 * labels[:, None] - 1), labels)


def by_hand(initial: dict[str, Tensor], data: TensorDataset, dropped: set[int]) -> Tensor:
    """Weights and biases of softmax regression by momentum SGD: gradients written out, batches in order."""
    weight, bias = initial["linear.weight"].clone(), initial["linear.bias"].clone()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    points, labels = data.tensors
    for _ in range(EPOCHS):
        for start in range(0, TRAIN, BATCH):
            kept = [j for j in range(start, start + BATCH) if j not in dropped]
            logits = points[kept] @ weight.T + bias
            residual = (logits - logits.logsumexp(1, keepdim=True)).exp() - nn.functional.one_hot(labels[kept], 2)
            grads = [residual.T @ points[kept] / BATCH, residual.sum(0) / BATCH]
            velocity = [MOMENTUM * v + g for v, g in zip(velocity, grads, strict=True)]
            weight, bias = weight - RATE * velocity[0], bias - RATE * velocity[1]
    return torch.cat([weight.flatten(), bias])


class Recorded:
    """A trained model, its record, and the data it saw; a few training labels are wrong."""

    def __init__(self, path: Path, keep: str = "every_step") -> None:
        torch.manual_seed(5)
        self.train, self.validation = clouds(TRAIN, 0), clouds(31, 1)
        self.train.tensors[1][list(FLIPPED)] = 1 - self.train.tensors[1][list(FLIPPED)]
        self.loader = DataLoader(self.train, batch_size=BATCH)
        self.model = Logistic()
        self.initial = dict(state_of(self.model).params)
        self.path = path
        L.Trainer(
            max_epochs=EPOCHS,
            callbacks=[TrajectoryRecorder(path, keep=keep)],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(self.model, self.loader, DataLoader(self.validation, batch_size=16))

    @contextmanager
    def retraining(self, epochs: int | str) -> Iterator[Retraining]:
        """Counterfactual retraining, while log and model are open."""
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        with runner.open(self.model, self.loader, log=self.path) as run:
            yield partial(CounterfactualReplay(epochs).update, run)

    def scores(self, loader: DataLoader) -> Scores:
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
        return runner.run(self.model, self.loader, loader, log=self.path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded") / "run.tlog")


def flat(state: ModelState) -> Tensor:
    return torch.cat([state.params["linear.weight"].flatten(), state.params["linear.bias"]])


@pytest.mark.parametrize("epochs", [1, 3, "all"])
def test_nothing_dropped_is_the_trained_model_bit_for_bit(recorded: Recorded, epochs: int | str) -> None:
    with recorded.retraining(epochs) as retrain:
        assert torch.equal(flat(retrain(Selection()).state), flat(state_of(recorded.model)))


def test_retraining_all_is_the_loop_by_hand(recorded: Recorded) -> None:
    with recorded.retraining("all") as retrain:
        state = flat(retrain(Selection(drop=FLIPPED)).state)
    expected = by_hand(recorded.initial, recorded.train, set(FLIPPED))
    assert (expected - flat(state_of(recorded.model))).abs().max() > 1e-2, "the test is degenerate"
    assert (state - expected).abs().max() < 1e-13


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_log_with_few_states_serves_as_well(recorded: Recorded, tmp_path: Path, epochs: int) -> None:
    few = Recorded(tmp_path / "few.tlog", keep="last_epochs(1)")
    with few.retraining(epochs) as retrain, recorded.retraining(epochs) as same:
        assert torch.equal(flat(retrain(Selection(drop=(3, 8))).state), flat(same(Selection(drop=(3, 8))).state))
    with RunLog.open(few.path) as log:
        assert len(log.state_indices) < len(log), "the test is degenerate"


def test_the_chosen_number_helps_on_held_out_data(recorded: Recorded) -> None:
    halves = halve(31, seed=0, labels=recorded.validation.tensors[1])
    scoring, choosing = (DataLoader(part, batch_size=16) for part in halves.subsets(recorded.validation))
    scores = recorded.scores(scoring)
    before = flat(state_of(recorded.model))
    with recorded.retraining("all") as retrain:
        evaluate = StateEvaluation(Logistic(), choosing)
        context = CleansingContext(evaluate=held_out_value(retrain, evaluate))
        selection = Validated(grid=(1, 2, 4, 6, 9, 15)).select(scores, context)
        curve = cleansing_curve(retrain, scores.order().tolist(), [t.count for t in selection.trace], evaluate)
        chosen = evaluate(retrain(selection).state)
    assert [(t.count, t.value) for t in selection.trace] == [(m, e.loss) for m, e in curve]
    assert chosen.loss == min(e.loss for _, e in curve)
    assert chosen.loss < curve[0][1].loss
    assert len(set(selection.drop) & set(FLIPPED)) >= 4
    assert torch.equal(flat(state_of(recorded.model)), before)


def test_relabelling_repairs_flipped_labels(recorded: Recorded) -> None:
    scores = recorded.scores(DataLoader(recorded.validation, batch_size=16))
    context = CleansingContext(
        labels=recorded.train.tensors[1], predictions=ModelPredictions(recorded.model, recorded.train)
    )
    selection = Relabel(len(FLIPPED)).select(scores, context)
    repaired = TensorDataset(recorded.train.tensors[0], recorded.train.tensors[1].clone())
    for j, label in selection.relabel.items():
        repaired.tensors[1][j] = label
    with recorded.retraining("all") as retrain:
        state = flat(retrain(selection).state)
    assert len(set(selection.relabel) & set(FLIPPED)) >= 4
    assert (state - by_hand(recorded.initial, repaired, set())).abs().max() < 1e-13
