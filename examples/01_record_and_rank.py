"""Record a run of a Trainer you already have, then ask which examples harmed it.

    python examples/01_record_and_rank.py

Takes a few seconds: 1,000 of scikit-learn's digits, a tenth of the labels wrong.
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder


class Digits(L.LightningModule):
    """An ordinary module: nothing in it knows of influence."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


def main() -> None:
    L.seed_everything(0, verbose=False)
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    wrong = torch.randperm(1000)[:100]
    y[wrong] = (y[wrong] + torch.randint(1, 10, (100,))) % 10
    train = DataLoader(TensorDataset(x[:1000], y[:1000]), batch_size=50, shuffle=True)
    val = DataLoader(TensorDataset(x[1000:1400], y[1000:1400]), batch_size=400)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "digits.tlog"
        model = Digits()
        trainer = L.Trainer(
            max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[TrajectoryRecorder(log)],
        )  # fmt: skip
        trainer.fit(model, train, val)
        scores = InfluenceRunner(accelerator="cpu", progress=False).run(model, train, val, log=log)

    print(scores.most_harmful(10))
    print(*scores.certificate.summary(), sep="\n")
    found = set(scores.most_harmful(100).example_ids) & set(wrong.tolist())
    print(f"{len(found)} of the 100 most harmful examples have a wrong label; by chance it would be 10.")


if __name__ == "__main__":
    main()
