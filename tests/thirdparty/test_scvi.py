"""Models of scvi-tools, through their ``train``: data sets asked for lists of cells, an annealed loss by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.thirdparty.library_runs import QUIET, Fitted, scored

pytest.importorskip("scvi", reason="needs the extra libraries")
anndata = pytest.importorskip("anndata")
pytestmark = pytest.mark.filterwarnings("ignore")


def loss_of_each(module: Any, batch: Any, batch_idx: int) -> Tensor:
    """The loss of every cell, shape ``[B]``."""
    weight = module.kl_weight
    _, _, loss = module.forward(batch, loss_kwargs={**module.loss_kwargs, "kl_weight": weight})
    kl = loss.kl_local
    return sum(loss.reconstruction_loss.values()) + weight * kl["kl_divergence_z"] + kl["kl_divergence_l"]


def test_a_variational_autoencoder_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scvi

    monkeypatch.chdir(tmp_path)
    counts = np.random.default_rng(0).poisson(2.0, size=(24, 6)).astype(np.float32)

    def fit(callbacks: list[Any]) -> Fitted:
        cells = anndata.AnnData(counts)
        cells.obs["batch"] = [str(i % 2) for i in range(24)]
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        scvi.settings.seed = 0
        model = scvi.model.SCVI(cells, n_hidden=4, n_latent=2)
        trainer = {n: v for n, v in QUIET.items() if n not in ("enable_checkpointing", "enable_model_summary")}
        plan = {"n_epochs_kl_warmup": 2}
        model.train(max_epochs=2, batch_size=6, train_size=0.75, callbacks=callbacks, plan_kwargs=plan, **trainer)
        trained = model.trainer
        return Fitted(module=trained.lightning_module, trainer=trained, datamodule=trained.datamodule)

    _, scores = scored(fit, tmp_path / "run.tlog", per_example_loss=loss_of_each)
    assert len(scores) == 18
