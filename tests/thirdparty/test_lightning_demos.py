"""Lightning's own demonstration modules, recorded and replayed as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos import LightningTransformer, WikiText2
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel, ManualOptimBoringModel
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, Scores, TrajectoryRecorder
from lightning_sgdinf.errors import UnsupportedRunError

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
SENTENCES = ("the cat sat on the mat", "a dog ran in the park", "birds sing and the cat listens", "dogs and cats run")


def certified(scores: Scores) -> None:
    """Every step led where it was recorded to lead, and central differences agree."""
    found = scores.certificate
    assert found is not None
    assert found.step_replay is not None
    assert found.step_replay.steps == found.step_replay.bitwise
    assert found.gradient_check is not None
    assert found.gradient_check.relative_error <= found.gradient_check.tolerance
    assert max(map(abs, found.gradient_check.measured)) > 0, "the test is degenerate"


def test_the_boring_model(tmp_path: Path) -> None:
    model, data = BoringModel(), BoringDataModule()
    pl.Trainer(max_steps=6, callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")], **QUIET).fit(model, datamodule=data)
    train, val = data.train_dataloader(), data.val_dataloader()
    scores = InfluenceRunner(accelerator="cpu", progress=False).run(model, train, val, log=tmp_path / "run.tlog")
    certified(scores)
    drawn = (scores.values[:, 0] != 0).sum()
    assert drawn == 6  # one example a step


def test_the_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the demo reads, and otherwise fetches, data/wikitext-2.txt
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wikitext-2.txt").write_text("\n".join(SENTENCES * 4))
    texts = WikiText2(block_size=6, download=False)
    torch.manual_seed(0)
    model = LightningTransformer(vocab_size=texts.vocab_size)
    train = DataLoader(texts, batch_size=4, shuffle=True)
    held_out = DataLoader(torch.utils.data.Subset(texts, range(4)), batch_size=4)
    # Its learning rate of 0.1 makes a fresh model's first steps explode; clipped, as transformers are, they do not.
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    pl.Trainer(max_steps=3, gradient_clip_val=0.5, callbacks=[recorder], **QUIET).fit(model, train)
    scores = InfluenceRunner(accelerator="cpu", progress=False).run(model, train, held_out, log=tmp_path / "run.tlog")
    certified(scores)
    assert len(scores) == len(texts)


def test_manual_optimization_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedRunError, match="Use automatic optimization"):
        pl.Trainer(max_steps=2, callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")], **QUIET).fit(
            ManualOptimBoringModel(), datamodule=BoringDataModule()
        )
