"""A transformer with adapters of peft: the log holds what is trained, the base model is known by its digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, RunLog
from lightning_sgdinf.errors import SgdInfluenceError
from tests.thirdparty.library_runs import QUIET, Fitted, scored

pytest.importorskip("peft", reason="needs the extra libraries")
pytest.importorskip("transformers")
pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Adapted(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import BertConfig, BertForSequenceClassification

        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        base = BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=8, **size))
        adapter = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"], lora_dropout=0.1)
        self.model = get_peft_model(base, adapter)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_adapters_of_a_transformer(tmp_path: Path) -> None:
    random, log = torch.Generator().manual_seed(0), tmp_path / "run.tlog"
    tokens = torch.randint(5, 40, (18, 5), generator=random)
    rows = [{"input_ids": t, "labels": (t.float().mean() > 22).long()} for t in tokens]

    def fit(callbacks: list[Any]) -> Fitted:
        module = Adapted()
        train, validation = DataLoader(rows[:10], batch_size=5, shuffle=True), DataLoader(rows[10:], batch_size=8)
        trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, **QUIET)
        trainer.fit(module, train, validation)
        return Fitted(module=module, trainer=trainer, train=train, validation=validation)

    fitted, scores = scored(fit, log)
    assert len(scores) == 10
    trained = {n for n, p in fitted.module.named_parameters() if p.requires_grad}
    with RunLog.open(log) as run:
        assert set(run.state(0).params) == trained
    word = fitted.module.model.get_input_embeddings().weight
    with torch.no_grad():
        word[7] += 1.0
    with pytest.raises(SgdInfluenceError, match="word_embeddings"):
        InfluenceRunner(accelerator="cpu", progress=False).run(fitted.module, fitted.train, fitted.validation, log=log)
