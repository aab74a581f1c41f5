"""A loss written by hand, two ways: a per-example method, or a tapped sub-module.

    python examples/04_own_loss.py

Example weights enter at torch's loss functions. A loss that uses none of them is refused, with these two ways out in
the error.
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
from recorded import record
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.query import MeanLoss


class ByHand(L.LightningModule):
    """Cross entropy, spelt out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(5, 3)

    def losses(self, batch):
        x, y = batch
        logits = self.head(x)
        return logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]

    def training_step(self, batch, batch_idx):
        return self.losses(batch).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class WithMethod(ByHand):
    """The same, saying what each example adds."""

    def per_example_loss(self, batch, batch_idx):
        return self.losses(batch)


def main() -> None:
    L.seed_everything(0, verbose=False)
    x = torch.randn(60, 5)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=10)
    query = MeanLoss(step="training_step")
    with tempfile.TemporaryDirectory() as folder:
        model, log = ByHand(), Path(folder) / "by_hand.tlog"
        record(model, log, max_epochs=3, train_dataloaders=loader)
        quiet = dict(accelerator="cpu", progress=False)
        try:
            InfluenceRunner(**quiet).run(model, loader, loader, log=log, query=query)
        except UntappedLossError as error:
            print(f"refused: {error}\n")
        tapped = InfluenceRunner(**quiet, tap="head").run(model, loader, loader, log=log, query=query)
        twin = WithMethod()
        by_method = InfluenceRunner(**quiet).run(twin, loader, loader, log=log, query=query)
    gap = float((tapped.values - by_method.values).abs().max() / by_method.values.abs().max())
    print(f"both ways agree to {gap:.0e} of the largest score")


if __name__ == "__main__":
    main()
