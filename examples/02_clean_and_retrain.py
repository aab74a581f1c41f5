"""Leave the most harmful examples out of the last epochs of the very same run, and see what that does.

    python examples/02_clean_and_retrain.py

Counterfactual SGD: the same batches, random numbers and learning rates, with the dropped examples' weight at zero. The
number to drop is chosen on one half of the validation set, scores come from the other half, and the result is told on a
test set.
"""

import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, RunLog, TrajectoryRecorder
from lightning_sgdinf.cleansing import (
    CleansingContext,
    StateEvaluation,
    Validated,
    halve,
    held_out_value,
)
from lightning_sgdinf.updates import CounterfactualReplay
from lightning_sgdinf.zoo import Classifier, Digits, ImageData, mlp


def main() -> None:
    L.seed_everything(0, verbose=False)
    data = ImageData(Digits(), train_size=1000, val_size=300, test_size=497, label_noise=0.1, batch_size=50)
    model = Classifier(mlp(data.image_shape, 10), classes=10, optimizer=partial(torch.optim.SGD, lr=0.1))
    scoring, choosing = halve(len(data.val_set), seed=0).subsets(data.val_set)
    train = data.train_dataloader()

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        trainer = L.Trainer(
            max_epochs=15, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[TrajectoryRecorder(log)],
        )  # fmt: skip
        trainer.fit(model, train, DataLoader(scoring, batch_size=500))
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        scores = runner.run(model, train, DataLoader(scoring, batch_size=500), log=log)
        with runner.open(model, train, log=log) as run:
            retraining = partial(CounterfactualReplay(epochs="all").update, run)
            held_out = StateEvaluation(model, DataLoader(choosing, batch_size=500))
            context = CleansingContext(evaluate=held_out_value(retraining, held_out))
            selection = Validated(grid=(30, 60, 100, 150)).select(scores, context)
            cleansed = retraining(selection)
        test = StateEvaluation(model, data.test_dataloader())
        before, after = test(scores_state(log)), test(cleansed.state)
    print(selection.reason)
    print(f"test error {before.error:.3f} -> {after.error:.3f}, test loss {before.loss:.3f} -> {after.loss:.3f}")


def scores_state(log: Path):
    """The final state of the recorded run."""
    with RunLog.open(log) as run:
        return run.state(len(run))


if __name__ == "__main__":
    main()
