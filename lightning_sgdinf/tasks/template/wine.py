"""A data module and a model: put your own in their place. The files below conf/ name them for `sgdinf`."""

import lightning as L
import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset


class WineData(L.LightningDataModule):
    """178 wines, 13 measurements each, of three cultivars; scikit-learn has them."""

    def __init__(self, batch_size: int = 16, seed: int = 0):
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        """Split them: whatever the stage, in the same way."""
        measured, cultivar = load_wine(return_X_y=True)
        x, y = torch.tensor(measured, dtype=torch.float32), torch.tensor(cultivar)
        wines = TensorDataset((x - x.mean(0)) / x.std(0), y)
        order = torch.randperm(len(wines), generator=torch.Generator().manual_seed(self.seed)).tolist()
        self.train, self.val, self.test = (Subset(wines, part) for part in (order[:90], order[90:130], order[130:]))

    def train_dataloader(self) -> DataLoader:
        """Return what is trained on, and what is ranked."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return what the scores explain (one half) and what is chosen by (the other)."""
        return DataLoader(self.val, 64)

    def test_dataloader(self) -> DataLoader:
        """Return what the effect is measured on."""
        return DataLoader(self.test, 64)


class WineNet(L.LightningModule):
    """A small network; any LightningModule with one optimizer will do."""

    def __init__(self, hidden: int = 16, lr: float = 0.05):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, hidden), nn.Tanh(), nn.Linear(hidden, 3))
        self.lr = lr

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.net(x)

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch."""
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        """Log and return the loss: its mean is what the scores are about."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
