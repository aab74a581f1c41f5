"""Every baseline by its name, and the choices that no example or class shall be lost by, in the command itself."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from lightning_sgdinf import Scores
from lightning_sgdinf.cleansing import InfeasibleWarning
from lightning_sgdinf.tasks.main import main

TINY = [
    *("dataset.train_size=48", "dataset.val_size=60", "dataset.test_size=60", "dataset.batch_size=16", "model=logreg"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "retrain=last_epochs", "report=short", "hydra.run.dir=out"),
]
NAMES = ("area_under_margin", "autoencoder", "confident_learning", "local_outlier_factor", "margin", "one_class_svm")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sgdinf", *TINY, *arguments])
    main()


def test_baselines_rank_and_cleanse(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanlab")
    compared = [f"+estimator@compare.{name}={name}" for name in NAMES]
    options = ["compare.confident_learning.folds=2", "compare.autoencoder.epochs=2", "report.explained=2"]
    options += ["cleansing=stable", "cleansing.grid=[2,4]"]
    run(monkeypatch, "estimator=isolation_forest", *compared, *options)
    files = [Scores.load(in_folder / "out" / "scores" / f"{name}.h5") for name in ("isolation_forest", *NAMES)]
    assert {len(scores) for scores in files} == {48}
    orders = {tuple(scores.order().tolist()) for scores in files}
    assert len(orders) == len(files)
    assert "isolation forest" in (in_folder / "out" / "report" / "report.html").read_text()
    assert all(torch.isfinite(scores.values).all() for scores in files)


def test_values_rank_and_cleanse(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their errors, also beside scores of single examples."""
    chosen = ["estimator=shapley", "estimator.permutations=2", "query=accuracy", "+estimator@compare.knn=knn_shapley"]
    more = ["+estimator@compare.banzhaf=banzhaf", "compare.banzhaf.coalitions=40", "compare.banzhaf.control=null"]
    run(monkeypatch, *chosen, *more, "cleansing=negative", "report.explained=2", "dataset.label_noise=0.3")
    shapley, banzhaf, knn = (
        Scores.load(in_folder / "out" / "scores" / f"{name}.h5") for name in ("shapley", "banzhaf", "knn")
    )
    for scores in (shapley, banzhaf):
        assert scores.queries == ("validation accuracy",)
        assert scores.standard_error is not None
        assert scores.standard_error.shape == (48, 1)
        assert scores.standard_error.max() > 0
    assert knn.better == ("order",)
    page = (in_folder / "out" / "report" / "report.html").read_text()
    worst = shapley.most_harmful(1)
    assert worst.standard_errors == (shapley.standard_error[worst.example_ids[0], 0],)  # type: ignore[index]
    assert page.count("Shapley: what leaving the example out of a coalition of the others changes") >= 1
    table = (in_folder / "out" / "report" / "tables" / "most-harmful.csv").read_text().splitlines()
    assert "standard error" in table[0].split(",")
    assert str(worst.standard_errors[0]) in table[1].split(",")


def test_too_many_removals_with_a_warning(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ("estimator=loss", "cleansing=top_k", "cleansing.k=48")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InfeasibleWarning)
        run(monkeypatch, *many, "on_excess=warn")
    said = [str(warning.message) for warning in caught if warning.category is InfeasibleWarning]
    assert len(said) == 2
    assert "expected 0 to 47 of 48, got 48" in said[0]
    assert "without 47 examples and with 0 relabelled, nothing is left of class" in said[1]
    with pytest.raises(SystemExit):
        run(monkeypatch, *many, "on_excess=ignore")
    assert "on_excess" in capsys.readouterr().err
