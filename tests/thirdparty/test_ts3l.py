"""VIME of TabularS3L, self-supervised on rows of a table with random masks, recorded and replayed as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder

pl = pytest.importorskip("pytorch_lightning")
pytest.importorskip("ts3l", reason="needs the extra thirdparty")
pandas = pytest.importorskip("pandas")


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # of its rows, on making tensors
def test_rows_are_scored_under_their_random_masks(tmp_path: Path) -> None:
    from ts3l.pl_modules import VIMELightning
    from ts3l.utils.backbone_utils import MLPBackboneConfig
    from ts3l.utils.embedding_utils import IdentityEmbeddingConfig
    from ts3l.utils.vime_utils import VIMEConfig, VIMEDataset

    random = np.random.default_rng(0)
    rows = pandas.DataFrame(random.normal(size=(20, 4)), columns=list("abcd"))
    rows.insert(0, "kind", random.integers(0, 3, 20))
    config = VIMEConfig(
        task="classification",
        loss_fn="CrossEntropyLoss",
        embedding_config=IdentityEmbeddingConfig(input_dim=5),
        backbone_config=MLPBackboneConfig(input_dim=5, hidden_dims=6, output_dim=6, n_hiddens=1),
        output_dim=2,
        predictor_dim=4,
        cat_cardinality=[3],
        num_continuous=4,
        optim_hparams={"lr": 0.01},
    )
    module = VIMELightning(config)
    options = {"config": config, "continuous_cols": list("abcd"), "category_cols": ["kind"]}
    train = DataLoader(VIMEDataset(rows[:16], **options), batch_size=4, shuffle=True)
    val = DataLoader(VIMEDataset(rows[16:], **options), batch_size=4)
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
    kept = len(module.first_phase_step_outputs)
    scores = InfluenceRunner(accelerator="cpu", progress=False).run(module, train, val, log=log)
    certificate = scores.certificate
    assert certificate is not None
    assert certificate.step_replay is not None
    assert certificate.step_replay.steps == 12
    assert certificate.step_replay.largest_deviation < 1e-4  # not bit for bit: Adam's first steps magnify rounding
    assert certificate.gradient_check is not None
    assert certificate.gradient_check.relative_error <= certificate.gradient_check.tolerance
    assert len(module.first_phase_step_outputs) == kept  # what a step keeps on the module is not kept of a replay
