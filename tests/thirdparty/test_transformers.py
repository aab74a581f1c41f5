"""Models of the library transformers, from small configurations, against their training differentiated as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, RunLog, TrajectoryRecorder
from lightning_sgdinf.testing import relative_error

transformers = pytest.importorskip("transformers")

N, VOCABULARY, LENGTH, IGNORED = 6, 20, 6, -100
RATE, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def examples(kind: str, seed: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Sequences of unequal length with one label, or labels at some or all of their tokens; or pictures."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in torch.randint(3, LENGTH + 1, (N,), generator=generator).tolist():
        there = torch.arange(LENGTH) < length
        tokens = torch.randint(5, VOCABULARY, (LENGTH,), generator=generator) * there
        labels = torch.where(there, tokens, IGNORED)
        if kind == "picture":
            picture = torch.randn(1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
            rows.append({"pixel_values": picture, "labels": tokens[0] % 3})
            continue
        labels = tokens[0] % 2 if kind == "class" else labels.flip(0) if kind == "other sequence" else labels
        rows.append({"input_ids": tokens, "attention_mask": there.long(), "labels": labels})
    return rows


def widened(example: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in example.items()}


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SMALL,
    )
    return transformers.BertForSequenceClassification(config)


def vit() -> Any:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config)


def gpt2() -> Any:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=8, **dropout)
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=8, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, **SMALL
    )
    return transformers.LlamaForCausalLM(config)


def t5() -> Any:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


class Net(L.LightningModule):
    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = make()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)


class ByHand(nn.Module):
    """What each example adds to the loss, ``[B]``, from the logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        logits, labels = self.model(**batch).logits.double(), batch["labels"]
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, reduction="none") / len(labels)
        if "CausalLM" in type(self.model).__name__ or "LMHead" in type(self.model).__name__:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        return losses.sum(1) / (labels != IGNORED).sum()


def unrolled(make: Callable[[], Any], log: Path, train: Any, held_out: Any) -> Tensor:
    """The whole training in float64, by the formulas of AdamW, differentiated in the weights, ``[N, 1]``."""
    with RunLog.open(log) as run:
        steps, start = [run.step(t).example_ids.tolist() for t in range(len(run))], run.state(0)
    net = ByHand(make().double())
    params = {n: v.double().requires_grad_() for n, v in start.params.items()}
    weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in params.items()}
    collate = torch.utils.data.default_collate
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        for t, ids in enumerate(steps, start=1):
            loss = (weights[ids] * torch.func.functional_call(net, params, (collate([train[i] for i in ids]),))).sum()
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            after = {}
            for (name, p), g in zip(params.items(), grads, strict=True):
                m, v = (b * old + (1 - b) * new for b, old, new in zip(BETAS, moments[name], (g, g * g), strict=True))
                moments[name] = m, v
                root = torch.where(v > 0, torch.where(v > 0, v, 1).sqrt(), 0) / (1 - BETAS[1] ** t) ** 0.5
                after[name] = p * (1 - RATE * DECAY) - RATE * m / (1 - BETAS[0] ** t) / (root + EPS)
            params = after
        query = torch.func.functional_call(net, params, (collate(held_out),)).sum()
    return -torch.autograd.grad(query, weights)[0][:, None]


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize(
    ("make", "kind", "rounds"),
    [
        (bert, "class", "float64"),
        (vit, "picture", "float64"),
        (gpt2, "sequence", "float32"),
        (llama, "sequence", "float32"),
        (t5, "other sequence", "float32"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_the_training_differentiated(
    make: Callable[[], Any], kind: str, rounds: str, precision: Any, tmp_path: Path
) -> None:
    """Models of language compute their loss or norms in float32 even in float64."""
    transformers.logging.set_verbosity_error()
    dtype = torch.float64 if precision == "64-true" else torch.float32
    module, log = Net(make), tmp_path / "run.tlog"
    train, held_out = (DataLoader(examples(kind, seed, dtype), batch_size=3) for seed in (0, 1))  # type: ignore[arg-type]
    L.Trainer(
        accelerator="cpu", max_epochs=2, precision=precision, callbacks=[TrajectoryRecorder(log)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(module, train, DataLoader(held_out.dataset, batch_size=N))  # fmt: skip
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    scores = runner.run(module, train, DataLoader(held_out.dataset, batch_size=N), log=log)
    certificate = scores.certificate
    assert certificate is not None
    assert certificate.gradient_check is not None
    assert {"query", "swap check"} <= {check.name for check in certificate.further}
    wide = [[widened(example) for example in examples(kind, seed, dtype)] for seed in (0, 1)]
    exact = precision == "64-true" and rounds == "float64"
    assert relative_error(scores.values, unrolled(make, log, *wide)) < (1e-6 if exact else 1e-3)
