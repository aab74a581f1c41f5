"""The stages of the main job, as functions of plain objects: train and record, rank, cleanse, retrain.

The validation set is halved: scores explain the loss on one half, how many examples to leave out is chosen on the
other, and what came of it is measured on the test set, which nothing else looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import LightningModule, seed_everything
from torch.utils.data import DataLoader, Subset

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines import Baseline
from lightning_sgdinf.cleansing import (
    CleansingContext,
    Evaluation,
    ModelPredictions,
    RetrainingCache,
    Selection,
    StateEvaluation,
    evaluate_classifier,
    halve,
)
from lightning_sgdinf.evaluation import CleansingCurve, Detection, detect
from lightning_sgdinf.query import Query
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.tasks.explanations import Joined, explained_query, wrongly_classified
from lightning_sgdinf.tasks.retraining import EndedRun
from lightning_sgdinf.tasks.study import Study
from lightning_sgdinf.zoo import Classifier, ImageData, VectorData

CHOOSING, TEST = "choosing", "test"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model and the record of its training."""

    model: Classifier
    log: Path
    logger: Any
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Scores of every method.

    Attributes:
        scores: By name of the method, the job's own first; of the job's query alone.
        explained: The job's own scores for single validation examples that the model gets wrong; ``None`` if there are
            none to explain.
        explained_ids: Their ids in the validation set, one per query of ``explained``.
        seconds: Wall time by name of the method.
    """

    scores: Mapping[str, Scores]
    explained: Scores | None
    explained_ids: tuple[int, ...]
    seconds: Mapping[str, float]

    @property
    def main(self) -> Scores:
        """The job's own."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True, kw_only=True)
class Cleansed:
    """What was done with the ranking, and what came of it.

    Attributes:
        selection: What was left out or relabelled.
        before: Test loss and error before.
        after: And after training again.
        curves: Test error against the number of examples left out, one per method.
        seconds: Wall time of choosing, training again and drawing the curves.
    """

    selection: Selection
    before: Evaluation
    after: Evaluation
    curves: tuple[CleansingCurve, ...]
    seconds: float


def train(study: Study) -> Trained:
    """Fit a new model with the recorder on."""
    seed_everything(study.seed, verbose=False)
    model, logger = study.new_model(), study.new_logger()
    trainer = study.new_trainer(callbacks=[study.recorder], logger=False if logger is None else logger)
    began = perf_counter()
    trainer.fit(model, datamodule=study.data)
    return Trained(model=model, log=Path(study.recorder.path), logger=logger, seconds=perf_counter() - began)


def rank(study: Study, trained: Trained) -> Ranked:
    """Score every training example by every method."""
    scoring, _ = validation_halves(study.data, study.seed)
    loader = DataLoader(scoring, batch_size=study.data.eval_batch_size)
    own = next(iter(study.methods.values()))
    # A baseline ranks and explains no query.
    positions = [] if isinstance(own, Baseline) else wrongly_classified(trained.model, loader, study.report.explained)
    scores, seconds, explained = {}, {}, None
    for name, method in study.methods.items():
        began = perf_counter()
        query: Query = study.query
        if not scores and positions:
            query = Joined(study.query, explained_query(study.query.better, positions))
        found = _scores(study, trained, loader, query, method)
        if not scores and positions:
            found, explained = _split(found, len(found.queries) - len(positions))
        scores[name] = found
        seconds[name] = perf_counter() - began
    ids = tuple(scoring.indices[p] for p in positions)
    return Ranked(scores=scores, explained=explained, explained_ids=ids, seconds=seconds)


def cleanse(study: Study, trained: Trained, ranked: Ranked) -> Cleansed:
    """Choose what to leave out, train again, and measure on the test set."""
    began = perf_counter()
    data = study.data
    plain = data.train_set.unaugmented()
    with random_state.preserved():
        probe = study.new_model()  # holds the states that are evaluated; the trained model is busy being retraced
    _, choosing = validation_halves(data, study.seed)
    on_choosing = StateEvaluation(probe, DataLoader(choosing, batch_size=data.eval_batch_size))
    on_test = StateEvaluation(probe, data.test_dataloader())
    before = evaluate_classifier(trained.model, data.test_dataloader())
    predictions = ModelPredictions(trained.model, plain)
    settings = study.report
    with study.runner.open(trained.model, data.train_dataloader(), log=trained.log) as run:
        ended = EndedRun(run=run, dataset=data.train_set, fit=lambda dataset: _fit(study, dataset))
        retraining = study.retraining.prepare(ended)
        outcomes = RetrainingCache(retraining, {CHOOSING: on_choosing, TEST: on_test})
        context = CleansingContext(
            labels=data.train_set.labels,
            predictions=predictions,
            evaluate=outcomes.mean(CHOOSING, study.choose_by),
            evaluate_each=outcomes.each(CHOOSING, study.choose_by),
            on_excess=study.on_excess,
            seed=study.seed,
        )
        selection = study.cleansing.select(ranked.main, context)
        after = outcomes(selection)[TEST]
        curves = _curves(ranked, outcomes, settings.counts_below(len(data.train_set)))
    return Cleansed(selection=selection, before=before, after=after, curves=curves, seconds=perf_counter() - began)


def detections(study: Study, ranked: Ranked) -> dict[str, Detection]:
    """How well each method found the labels that were made wrong; empty if none were."""
    flipped = study.data.flipped
    if flipped is None or not flipped.any() or flipped.all():
        return {}
    wrong = flipped.nonzero().flatten().tolist()
    return {name: detect(scores.harm(), wrong) for name, scores in ranked.scores.items()}


def validation_halves(data: ImageData | VectorData, seed: int) -> tuple[Subset, Subset]:
    """The half of the validation set that scores are computed from, and the half to choose with."""
    return halve(len(data.val_set), seed=seed, labels=data.val_set.labels).subsets(data.val_set)


def _scores(study: Study, trained: Trained, loader: DataLoader, query: Query, method: Any) -> Scores:
    train_loader = study.data.train_dataloader()
    return study.runner.run(trained.model, train_loader, loader, log=trained.log, query=query, estimator=method)


def _curves(ranked: Ranked, outcomes: RetrainingCache, counts: tuple[int, ...]) -> tuple[CleansingCurve, ...]:
    curves = []
    for name, scores in ranked.scores.items() if counts else ():
        order = scores.order().tolist()
        errors = [outcomes(Selection(drop=tuple(order[:count])))[TEST].error for count in (0, *counts)]
        curves.append(CleansingCurve(method=name, counts=(0, *counts), errors=errors))
    return tuple(curves)


def _fit(study: Study, dataset: Any) -> LightningModule:
    """A run of its own on another training set, seeded as the first; neither recorded nor logged."""
    seed_everything(study.seed, verbose=False)
    model = study.new_model()
    loader = DataLoader(
        dataset,
        batch_size=study.data.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(study.seed),
    )
    study.new_trainer(logger=False, limit_val_batches=0).fit(model, loader, study.data.val_dataloader())
    return model


def _split(scores: Scores, count: int) -> tuple[Scores, Scores]:
    """The scores of the first ``count`` queries, and those of the others."""
    epochs = scores.per_epoch
    first = replace(
        scores,
        values=scores.values[:, :count],
        queries=scores.queries[:count],
        better=scores.better[:count],
        per_epoch=None if epochs is None else epochs[:, :, :count],
    )
    rest = replace(
        scores,
        values=scores.values[:, count:],
        queries=scores.queries[count:],
        better=scores.better[count:],
        per_epoch=None,
    )
    return first, rest
