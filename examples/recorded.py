"""What the examples on other matters begin with: a fit that is recorded, and says nothing."""

from pathlib import Path
from typing import Any

import lightning as L

from lightning_sgdinf import TrajectoryRecorder


def record(model: L.LightningModule, log: Path, *, max_epochs: int, **data: Any) -> None:
    """Fit a model on the CPU with a recorder among the Trainer's callbacks, as in the first example.

    Args:
        model: To be trained.
        log: Where the record goes.
        max_epochs: Epochs to train.
        **data: Data module or loaders, as to ``Trainer.fit``.
    """
    trainer = L.Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TrajectoryRecorder(log)],
    )  # fmt: skip
    trainer.fit(model, **data)
