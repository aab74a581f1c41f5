"""A model that fails because three in ten labels are wrong: find the cause, treat it, judge it by what nobody saw.

    python examples/09_repair.py

The failures of one half of the validation set are blamed on training examples, and everything is chosen on that half.
The other half, and the test set, judge. What failures blame is mostly right, so that leaving it out does not help;
margins along the run find the wrong labels, and exact replays without the suspects decide how many to leave out.
"""

import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import torch
from recorded import record

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.cleansing import IteratedMargins, StateEvaluation
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay
from lightning_sgdinf.updates.repair import Failures
from lightning_sgdinf.zoo import Classifier, Digits, ImageData, SymmetricNoise, mlp


def main(seed: int = 0) -> None:
    L.seed_everything(seed, verbose=False)
    noise = SymmetricNoise(0.3)
    data = ImageData(Digits(), train_size=900, val_size=400, test_size=497, batch_size=50, seed=seed, label_noise=noise)
    model = Classifier(mlp(data.image_shape, 10), classes=10, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        record(model, log, max_epochs=8, datamodule=data)
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        with runner.open(model, datamodule=data, log=log) as run:
            failures = Failures.halves(run)
            repaired = IteratedMargins(thresholds=()).search(run, failures)
        blamed = runner.run(model, datamodule=data, log=log, query=failures.query)
        worst = Selection(drop=blamed.most_harmful(len(repaired.selection.drop)).example_ids)
        test = StateEvaluation(model, data.test_dataloader())
        with runner.open(model, datamodule=data, log=log) as run:
            before = test(run.model)
            outcomes = {}
            for name, selection in (("what failures blame", worst), ("iterated margins", repaired.selection)):
                outcomes[name] = test(CounterfactualReplay(epochs="all").update(run, selection).state)
                wrong = 100 * data.flipped[torch.tensor(selection.drop)].double().mean()
                print(f"{name}: {len(selection.drop)} examples, {wrong:.0f} % of them with a wrong label")
    blame, margins = (outcome.wrong.sum() for outcome in outcomes.values())
    print(f"left out as what failures blame, {before.wrong.sum()} wrong test images become {blame}")
    print(f"left out by iterated margins, test images wrong: {before.wrong.sum()} -> {margins} of {before.count}")


if __name__ == "__main__":
    main()
