"""Transformers of RecTools, through their ``fit`` with a Trainer of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.thirdparty.library_runs import QUIET, Fitted, scored

pytest.importorskip("rectools", reason="needs the extra libraries")
pandas = pytest.importorskip("pandas")
pl = pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("name", "loss"), [("SASRecModel", "gBCE"), ("BERT4RecModel", "softmax")])
def test_sessions_of_users(tmp_path: Path, name: str, loss: str) -> None:
    from rectools import Columns, models
    from rectools.dataset import Dataset

    random, day = np.random.default_rng(0), pandas.Timedelta(days=1)
    begin = pandas.Timestamp("2020-01-01")
    bought = [(u, i, 1.0, begin + day * t) for u in range(12) for t, i in enumerate(random.permutation(8)[:5])]
    table = pandas.DataFrame(bought, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime])

    def held_out(rows: Any) -> Any:
        last = rows.groupby(Columns.User)[Columns.Datetime].rank(ascending=False, method="first") <= 1
        return np.asarray(last & (rows[Columns.User] < 4))

    def fit(callbacks: list[Any]) -> Fitted:
        def trainer(**kwargs: Any) -> Any:
            return pl.Trainer(max_epochs=2, callbacks=callbacks, **QUIET)

        shape = {"n_factors": 4, "n_blocks": 1, "n_heads": 1, "session_max_len": 4, "batch_size": 4}
        hooks = {"get_val_mask_func": held_out, "get_trainer_func": trainer}
        model = getattr(models, name)(loss=loss, epochs=2, lr=1e-2, dataloader_num_workers=0, **shape, **hooks)
        model.fit(Dataset.construct(table))
        used = model.fit_trainer
        loaders = {"train": used.train_dataloader, "validation": used.val_dataloaders}
        return Fitted(module=used.lightning_module, trainer=used, **loaders)

    _, scores = scored(fit, tmp_path / "run.tlog")
    assert len(scores) == 12
