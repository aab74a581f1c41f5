"""Labels that are wrong in the same way: find what harms, leave it out of the very same run, see what that does.

    python examples/02_clean_and_retrain.py

Six of ten fours are labelled nine, as one annotator may have it. The model learns this, so the loss of such an example
says little: the wrong labels are in the majority. What harms held-out data says more. The number to leave out is chosen
on one half of the validation set, scores come from the other half, and the result is told on a test set.
"""

import tempfile
from functools import partial
from pathlib import Path

import lightning as L
import torch
from recorded import record
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.baselines import LossBaseline
from lightning_sgdinf.cleansing import CleansingContext, StateEvaluation, Validated, halve, held_out_value
from lightning_sgdinf.evaluation import mcnemar_test
from lightning_sgdinf.updates import CounterfactualReplay
from lightning_sgdinf.zoo import Classifier, Digits, ImageData, mlp


def main(seed: int = 0) -> None:
    L.seed_everything(seed, verbose=False)
    data = ImageData(Digits(), train_size=600, val_size=400, test_size=497, batch_size=50, seed=seed)
    labels = data.train_set.labels
    fours = (labels == 4).nonzero()[:, 0]
    wrong = fours[torch.randperm(len(fours))[: 6 * len(fours) // 10]]
    labels[wrong] = 9
    model = Classifier(mlp(data.image_shape, 10), classes=10, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    scoring, choosing = (DataLoader(half, 500) for half in halve(len(data.val_set), seed=seed).subsets(data.val_set))
    train = data.train_dataloader()

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        record(model, log, max_epochs=8, train_dataloaders=train, val_dataloaders=scoring)
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        scores = runner.run(model, train, scoring, log=log)
        by_loss = runner.run(model, train, scoring, log=log, estimator=LossBaseline())
        with runner.open(model, train, log=log) as run:
            retrain = partial(CounterfactualReplay(epochs="all").update, run)
            context = CleansingContext(evaluate=held_out_value(retrain, StateEvaluation(model, choosing)))
            selection = Validated(grid=(10, 20, 40, 80)).select(scores, context)
            test = StateEvaluation(model, data.test_dataloader())
            before, after = test(run.model), test(retrain(selection).state)

    for name, ranking in (("influence", scores), ("training loss", by_loss)):
        top = set(ranking.most_harmful(len(wrong)).example_ids)
        print(
            f"of {len(wrong)} wrong labels, {len(top & set(wrong.tolist()))} are among the first {len(wrong)} by {name}"
        )
    print(selection.reason)
    print(f"test images wrong: {before.wrong.sum()} -> {after.wrong.sum()} of {before.count}")
    print(mcnemar_test(before.wrong, after.wrong).sentence())


if __name__ == "__main__":
    main()
