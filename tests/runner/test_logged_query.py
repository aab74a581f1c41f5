"""The query against what Lightning logged for the final model: an error where they differ, silence where they may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.checks import check_logged_query
from lightning_sgdinf.errors import QueryMismatchError
from lightning_sgdinf.query import MeanLoss, Query
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.updates import CounterfactualReplay
from tests.runner.hook_situations import VALIDATION, Data, Formula, Net, Trained, examples, train


def compare(run: Trained, data: Any = None, query: Query | None = None) -> tuple[list[Any], str]:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with runner.open(run.module, datamodule=data or run.data, log=run.path) as opened:
        bound = runner.bind(opened, query or MeanLoss())
        checks, notes = check_logged_query(opened, bound, bound.value(opened.model))
    return checks, " ".join(notes)


def test_the_certificate_says_that_the_query_is_what_was_logged(tmp_path: Path) -> None:
    run = train(tmp_path, Net())
    scores = run.scores(certificate="fast")
    (check,) = [c for c in scores.certificate.further if c.name == "query"]
    assert check.outcome in ("equal", "rounding")
    assert f"{run.logged['val_loss']:.6g}" in check.sentence()
    assert abs(run.logged["val_loss"] - Formula().scores()[0]) < 1e-12
    assert abs(scores.provenance["query_values"][0] - run.logged["val_loss"]) < 1e-12


class Elsewhere:
    """State that nobody records."""

    factor = 1.0


class Stateful(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = Elsewhere.factor * self.loss(batch)
        self.log("val_loss", loss)
        return loss


def test_another_validation_than_the_logged_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tmp_path, Stateful())
    assert compare(run)[0]
    monkeypatch.setattr(Elsewhere, "factor", 1.1)
    logged = run.logged["val_loss"]
    with pytest.raises(QueryMismatchError, match=f"val_loss = {logged:.9g}.*now gives {1.1 * logged:.7g}"):
        run.scores(certificate="fast")
    assert run.scores(certificate="off").values.abs().max() > 0
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    how: dict[str, Any] = {"update": CounterfactualReplay(), "log": run.path, "datamodule": run.data}
    with pytest.raises(QueryMismatchError, match=f"val_loss = {logged:.9g}"):
        runner.update(run.module, selection=Selection(drop=(1,)), **how)
    assert runner.update(run.module, selection=Selection(drop=()), **how).epochs  # as recorded, without weights


class OwnWeights(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("val_loss", loss, batch_size=1)
        return loss


class Noisy(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss((batch[0] + torch.randn_like(batch[0]), batch[1]))
        self.log("val_loss", loss)
        return loss


class OtherNumber(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("val_error", loss.detach() ** 2)
        return loss


class OtherData(Data):
    def val_dataloader(self) -> Any:
        return DataLoader(examples(len(VALIDATION), 5), batch_size=8)


Silent = Callable[[Path], tuple[list[Any], str]]
MAY_DIFFER: dict[str, tuple[Silent, int, str]] = {
    "weights of batches": (lambda p: compare(train(p, OwnWeights())), 1, "counts every example once"),
    "random validation": (lambda p: compare(train(p, Noisy())), 0, "draws random numbers"),
    "another quantity": (lambda p: compare(train(p, OtherNumber())), 0, ""),
    "other data": (lambda p: compare(train(p, Net()), OtherData()), 0, "are others than in the run"),
    "a part": (lambda p: compare(train(p, Net(), limit_val_batches=1)), 0, "validated on a part of the data"),
    "not at the end": (lambda p: compare(train(p, Net(), check_val_every_n_epoch=2)), 0, ""),
    "no validation": (lambda p: compare(train(p, Net(), limit_val_batches=0)), 0, ""),
}


@pytest.mark.parametrize("case", MAY_DIFFER, ids=str)
def test_what_cannot_be_compared_is_no_error(tmp_path: Path, case: str) -> None:
    compared, checks, note = MAY_DIFFER[case]
    got, said = compared(tmp_path)
    assert len(got) == checks
    assert note in said
    assert bool(said) == bool(note)
