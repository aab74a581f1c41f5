"""Ask several questions in one walk: each class, single examples, a function of your own.

python examples/03_own_questions.py
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
from recorded import record

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.query import FunctionQuery, Margin, PerClassLoss, ValidationData
from lightning_sgdinf.zoo import Classifier, Digits, ImageData, logistic_regression


def confidence(model: torch.nn.Module, data: ValidationData) -> torch.Tensor:
    """Mean probability of the model's own answer over the validation set."""
    batches = [(model(x).softmax(1).amax(1).sum(), size) for (x, _), _, size in data.batches()]
    return sum(total for total, _ in batches) / sum(size for _, size in batches)


def main() -> None:
    L.seed_everything(0, verbose=False)
    data = ImageData(Digits(), train_size=500, val_size=200, test_size=497, batch_size=50)
    model = Classifier(logistic_regression(data.image_shape, 10), classes=10)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        record(model, log, max_epochs=5, datamodule=data)
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        for query in (PerClassLoss(), Margin([3, 17]), FunctionQuery(confidence, ("confidence",), better="higher")):
            scores = runner.run(model, datamodule=data, log=log, query=query)
            print(f"\n{len(scores.queries)} question(s), the first: {scores.queries[0]}")
            print(scores.most_harmful(3))


if __name__ == "__main__":
    main()
