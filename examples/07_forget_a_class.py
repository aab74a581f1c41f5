"""Forget a class of a trained model, and compare with the exact answer: the same run without it.

    python examples/07_forget_a_class.py

The last epoch of the record is taken again without the class, and the difference extrapolated until the model no longer
knows it. Test data are for the judge alone.
"""

import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import torch
from recorded import record
from torch.utils.data import DataLoader, Subset

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.evaluation import UnlearningJudge
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay, ExtrapolatedReplay
from lightning_sgdinf.updates.post_hoc import FineTuning
from lightning_sgdinf.zoo import Classifier, Digits, ImageData, mlp

FORGET = 8


def main() -> None:
    L.seed_everything(0, verbose=False)
    data = ImageData(Digits(), train_size=1000, val_size=300, test_size=497, batch_size=50)
    model = Classifier(mlp(data.image_shape, 10), classes=10, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    ids = [j for j, label in enumerate(data.train_set.labels.tolist()) if label == FORGET]
    selection = Selection(drop=ids, reason=f"class {FORGET}")

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        record(model, log, max_epochs=8, datamodule=data)
        with InfluenceRunner(accelerator="cpu", progress=False).open(model, datamodule=data, log=log) as run:
            before = run.model
            exact = CounterfactualReplay("all").update(run, selection)
            extrapolated = ExtrapolatedReplay().update(run, selection)
            tuned = FineTuning().update(run, selection)

    gone = data.test_set.labels == FORGET
    rest, forgotten = (Subset(data.test_set, part.nonzero()[:, 0].tolist()) for part in (~gone, gone))
    loaders = [DataLoader(part, batch_size=500) for part in (rest, forgotten)]
    judge = UnlearningJudge(model, *loaders, exact=exact.state)
    print(f"replay of {extrapolated.last_epochs} epochs, extrapolated {extrapolated.factor:.2f} times")
    print("                 epochs  accuracy, rest  accuracy, class  KL rest  KL class")
    for name, state, epochs in (
        ("before", before, 0.0),
        ("exact run", exact.state, exact.epochs),
        ("extrapolated", extrapolated.state, extrapolated.epochs),
        ("fine-tuned", tuned.state, tuned.epochs),
    ):
        m = judge.judge(state)
        print(
            f"{name:15s}{epochs:8.1f}{m.rest_accuracy:16.3f}{m.forgotten_accuracy:17.3f}"
            f"{m.rest_divergence:9.3f}{m.forgotten_divergence:10.3f}"
        )


if __name__ == "__main__":
    main()
