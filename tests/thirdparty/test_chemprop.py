"""Message passing networks of chemprop, recorded and replayed as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.thirdparty.library_runs import QUIET, Fit, Fitted, scored

pytest.importorskip("chemprop", reason="needs the extra libraries")
pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")

SMILES = (
    "CCO",
    "CCN",
    "CCC",
    "CCCl",
    "c1ccccc1",
    "CC(=O)O",
    "CCOC",
    "CNC",
    "CCS",
    "CC#N",
    "C1CCCCC1",
    "CO",
    "CCBr",
    "OCCO",
)
TRAINED = 10


def examples(*, missing: int | None = None) -> tuple[Any, Any]:
    from chemprop import data, featurizers

    values = np.random.default_rng(0).normal(size=len(SMILES)) + [len(s) for s in SMILES]
    points = [data.MoleculeDatapoint.from_smi(s, np.array([v])) for s, v in zip(SMILES, values, strict=True)]
    if missing is not None:
        points[missing].y[:] = np.nan
    features = featurizers.SimpleMoleculeMolGraphFeaturizer()
    return data.MoleculeDataset(points[:TRAINED], features), data.MoleculeDataset(points[TRAINED:], features)


def network(*, batch_norm: bool) -> Any:
    from chemprop import models, nn

    passing, head = nn.BondMessagePassing(d_h=6, depth=2), nn.RegressionFFN(input_dim=6, hidden_dim=5)
    return models.MPNN(passing, nn.MeanAggregation(), head, batch_norm=batch_norm, warmup_epochs=1)


def fit(sets: tuple[Any, Any], *, batch_norm: bool, **settings: Any) -> Fit:
    from chemprop import data

    def train(callbacks: list[Any]) -> Fitted:
        module = network(batch_norm=batch_norm)
        loader = data.build_dataloader(sets[0], batch_size=5, num_workers=0, seed=1)
        validation = data.build_dataloader(sets[1], batch_size=5, shuffle=False, num_workers=0)
        trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, **QUIET, **settings)
        trainer.fit(module, loader, validation)
        return Fitted(module=module, trainer=trainer, train=loader, validation=validation)

    return train


def test_molecules_with_a_missing_label(tmp_path: Path) -> None:
    _, scores = scored(fit(examples(missing=3), batch_norm=False), tmp_path / "run.tlog")
    assert (scores.values[:, 0] != 0).tolist() == [i != 3 for i in range(TRAINED)]


def test_with_batch_norm(tmp_path: Path) -> None:
    _, scores = scored(fit(examples(), batch_norm=True), tmp_path / "run.tlog")
    assert len(scores) == TRAINED
