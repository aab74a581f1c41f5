"""Models of PyTorch Tabular, trained by their ``TabularModel``; and their loss by hand in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.testing import central_differences, relative_error
from tests.thirdparty.library_runs import Fitted, scored, start_and_batches

pytest.importorskip("pytorch_tabular", reason="needs the extra libraries")
pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore")
TRAINED = 18


def rows() -> Any:
    random = np.random.default_rng(0)
    table = pandas.DataFrame({"a": random.normal(size=26), "b": random.normal(size=26)})
    return table.assign(y=(table.a > 0).astype(int).astype(str))


def fit(config: Any, precision: str = "32") -> Any:
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig

    def train(callbacks: list[Any]) -> Fitted:
        table = TabularModel(
            data_config=DataConfig(target=["y"], continuous_cols=["a", "b"], normalize_continuous_features=False),
            model_config=config,
            optimizer_config=OptimizerConfig(),
            trainer_config=TrainerConfig(
                max_epochs=2,
                batch_size=6,
                accelerator="cpu",
                checkpoints=None,
                early_stopping=None,
                load_best=False,
                progress_bar="none",
                trainer_kwargs={"enable_model_summary": False, "precision": precision},
            ),
            verbose=False,
            suppress_lightning_logger=True,
        )
        table.fit(train=rows()[:TRAINED], validation=rows()[TRAINED:], callbacks=callbacks)
        data = table.datamodule
        loaders = data.train_dataloader(), data.val_dataloader()
        return Fitted(module=table.model, trainer=table.trainer, train=loaders[0], validation=loaders[1])

    return train


def test_a_transformer_of_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_tabular.models import FTTransformerConfig

    monkeypatch.chdir(tmp_path)
    config = FTTransformerConfig(task="classification", input_embed_dim=4, num_heads=2, num_attn_blocks=1)
    scored(fit(config), tmp_path / "run.tlog")


def test_layers_are_those_of_a_loop_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    monkeypatch.chdir(tmp_path)
    config = CategoryEmbeddingModelConfig(
        task="classification", layers="4", activation="Tanh", batch_norm_continuous_input=False, learning_rate=0.05
    )
    log = tmp_path / "run.tlog"
    _, scores = scored(fit(config, "64-true"), log)
    start, batches = start_and_batches(log)
    table = rows()
    # The data module gives single precision, which is what the model sees, widened.
    x = torch.tensor(table[["a", "b"]].to_numpy(dtype=np.float32)).double()
    y = torch.tensor(table.y.astype(int).to_numpy())
    weights_of, biases_of = ([n for n in start if n.endswith(end)] for end in ("weight", "bias"))

    def losses(p: dict[str, Tensor], ids: Any) -> Tensor:
        z = x[ids]
        for number, (w, b) in enumerate(zip(weights_of, biases_of, strict=True)):
            z = (z.tanh() if number else z) @ p[w].T + p[b]
        return F.cross_entropy(z, y[ids], reduction="none")

    def query_after(weights: Tensor) -> Tensor:
        p = {n: v.clone().requires_grad_() for n, v in start.items()}
        optimizer = torch.optim.Adam(list(p.values()), lr=0.05)
        for ids in batches:
            optimizer.zero_grad()
            (weights[ids] * losses(p, ids)).mean().backward()
            optimizer.step()
        return losses(p, range(TRAINED, 26)).mean()

    ids = [0, 8, 17]
    expected = central_differences(query_after, TRAINED, ids=ids)
    assert relative_error(scores.values[ids], expected) < 1e-6
