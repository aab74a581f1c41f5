"""What leaving examples out really does: measure it, and verify the ends of an estimate.

    python examples/05_ground_truth.py

Every single example left out of the same run, all 300 trainings at once; then the same question for a fifth of that
cost: real runs for the examples that an estimate puts at its two ends.
"""

import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import torch
from recorded import record

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.evaluation import measure_agreement
from lightning_sgdinf.refinement import refine
from lightning_sgdinf.zoo import Classifier, Digits, ImageData, mlp


def main() -> None:
    L.seed_everything(0, verbose=False)
    data = ImageData(Digits(), train_size=300, val_size=200, test_size=497, label_noise=0.1, batch_size=30)
    model = Classifier(mlp(data.image_shape, 10), classes=10, optimizer=partial(torch.optim.SGD, lr=0.2))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        record(model, log, max_epochs=8, datamodule=data)
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        scores = runner.run(model, datamodule=data, log=log)
        with runner.truth(model, datamodule=data, log=log) as truth:
            refined = refine(scores, truth, budget=0.2)  # before anything else is known
            true = truth.measure()  # everything
            pairs = truth.measure([[i, i + 1] for i in range(0, 300, 2)])  # sets of examples, too
    print(true)
    print(refined.most_harmful(5))
    for name, found in (("estimated", scores), ("with both ends verified", refined)):
        agreement = measure_agreement(found.values[:, 0], true.values[:, 0])
        shared = f"{100 * agreement.jaccard:.0f} % shared"
        print(f"{name}: Kendall's tau {agreement.kendall:.2f}, of the 10 + 10 extremes {shared}")
    apart = true.values.view(-1, 2).sum(1) - pairs.values[:, 0]
    share = apart.abs().mean() / pairs.values.abs().mean()
    print(f"two left out together differ from the sum of both alone by {100 * share:.0f} %")


if __name__ == "__main__":
    main()
