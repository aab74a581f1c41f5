"""The text classifier of torchTextClassifiers, recorded and replayed as it is, by the other name of Lightning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder

pl = pytest.importorskip("pytorch_lightning")
pytest.importorskip("torchTextClassifiers", reason="needs the extra thirdparty")

GOOD, BAD = ("good", "great", "fine", "nice"), ("bad", "poor", "awful", "sad")
WORDS = ("film", "book", "meal", "song", "the", "was", "so")


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")  # its logging, of batches that are mappings
def test_texts_are_scored(tmp_path: Path) -> None:
    from torchTextClassifiers.dataset.dataset import TextClassificationDataset
    from torchTextClassifiers.model.components import (
        ClassificationHead,
        SentenceEmbedder,
        SentenceEmbedderConfig,
        TokenEmbedder,
        TokenEmbedderConfig,
    )
    from torchTextClassifiers.model.lightning import TextClassificationModule
    from torchTextClassifiers.model.model import TextClassificationModel
    from torchTextClassifiers.tokenizers import NGramTokenizer

    logging.getLogger().setLevel(logging.WARNING)
    texts = [f"the {WORDS[i % 4]} was so {(GOOD, BAD)[i % 2][i // 2 % 4]}" for i in range(24)]
    labels = [i % 2 for i in range(24)]
    labels[3] = 1 - labels[3]
    tokenizer = NGramTokenizer(1, 3, 4, 200, 2, training_text=texts, output_dim=16)
    torch.manual_seed(0)
    network = TextClassificationModel(
        classification_head=ClassificationHead(8, 2),
        token_embedder=TokenEmbedder(TokenEmbedderConfig(tokenizer.vocab_size, 8, tokenizer.padding_idx)),
        sentence_embedder=SentenceEmbedder(SentenceEmbedderConfig("mean")),
    )
    module = TextClassificationModule(network, torch.nn.CrossEntropyLoss(), torch.optim.Adam, {"lr": 0.05}, None, {})
    train_set = TextClassificationDataset(texts[:18], None, tokenizer, labels[:18])
    val_set = TextClassificationDataset(texts[18:], None, tokenizer, labels[18:])
    train = DataLoader(train_set, batch_size=6, shuffle=True, collate_fn=train_set.collate_fn)
    val = DataLoader(val_set, batch_size=6, collate_fn=val_set.collate_fn)
    log = tmp_path / "run.tlog"
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TrajectoryRecorder(log)],
    )
    trainer.fit(module, train, val)
    scores = InfluenceRunner(accelerator="cpu", progress=False).run(module, train, val, log=log)
    certificate = scores.certificate
    assert certificate is not None
    assert certificate.step_replay is not None
    assert certificate.step_replay.steps == 9
    assert certificate.step_replay.largest_deviation < 1e-4  # not bit for bit: Adam's first steps magnify rounding
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.relative_error <= certificate.gradient_check.tolerance
    assert scores.most_harmful(1).example_ids == (3,)  # the wrong label
