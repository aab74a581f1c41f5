"""The stages of the main job, as functions of plain objects: train and record, rank, cleanse, retrain.

The validation set is halved: scores explain the loss on one half, the number of examples to leave out is chosen on the
other, and the effect is measured on the test set, which nothing else looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor
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
from lightning_sgdinf.evaluation import CleansingCurve, Detection
from lightning_sgdinf.query import Query
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.detection import detect_wrong_labels
from lightning_sgdinf.studies.pipeline.explanations import JoinedQuery, explained_query, wrongly_classified
from lightning_sgdinf.studies.pipeline.parts import CLEANSING, TRAINING, PipelineParts
from lightning_sgdinf.studies.removal_curves import removal_curves
from lightning_sgdinf.studies.retraining import model_update, shown, trainings_at_most
from lightning_sgdinf.zoo import Classifier, ImageData, VectorData

CHOOSING, TEST = "choosing", "test"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model and the record of its training.

    Attributes:
        model: With the final parameters.
        log: Path of the record.
        logger: Of the Trainer; ``None`` for none.
        seconds: Wall time of the training.
    """

    model: Classifier
    log: Path
    logger: Any
    seconds: float

    def record_bytes(self) -> int:
        """Return the size of the record on disk."""
        return sum(file.stat().st_size for file in self.log.rglob("*") if file.is_file())


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
        """Return the scores of the job's own method."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True, kw_only=True)
class Cleansed:
    """The effect of cleansing by the ranking.

    Attributes:
        selection: The examples left out or relabelled.
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


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """The result of all stages.

    Attributes:
        trained: Of `train`.
        ranked: Of `rank`.
        cleansed: Of `cleanse`.
        detections: Of `detections`.
    """

    trained: Trained
    ranked: Ranked
    cleansed: Cleansed
    detections: Mapping[str, Detection]


def train(parts: PipelineParts) -> Trained:
    """Fit a new model with the recorder on."""
    parts.announce(TRAINING)
    logger = parts.new_logger()
    run = parts.training.fit(
        recorder=parts.recorder, data={"datamodule": parts.data}, logger=False if logger is None else logger
    )
    return Trained(model=run.model, log=Path(parts.recorder.path), logger=logger, seconds=run.seconds)


def rank(parts: PipelineParts, trained: Trained) -> Ranked:
    """Score every training example by every method."""
    scoring, _ = validation_halves(parts.data, parts.seed)
    loader = DataLoader(scoring, batch_size=parts.data.eval_batch_size)
    own = next(iter(parts.methods.values()))
    # A baseline ranks and explains no query.
    positions = [] if isinstance(own, Baseline) else wrongly_classified(trained.model, loader, parts.report.explained)
    scores, seconds, explained = {}, {}, None
    for name, method in parts.methods.items():
        parts.announce(f"ranking by {name}")
        began = perf_counter()
        query: Query = parts.query
        if not scores and positions:
            query = JoinedQuery(parts.query, explained_query(parts.query.better, positions))
        method_scores = _scores(parts, trained, loader, query, method)
        if not scores and positions:
            method_scores, explained = _split(method_scores, len(method_scores.queries) - len(positions))
        scores[name] = method_scores
        seconds[name] = perf_counter() - began
    ids = tuple(scoring.indices[p] for p in positions)
    return Ranked(scores=scores, explained=explained, explained_ids=ids, seconds=seconds)


def cleanse(parts: PipelineParts, trained: Trained, ranked: Ranked) -> Cleansed:
    """Choose what to leave out, train again, and measure on the test set."""
    parts.announce(CLEANSING)
    began = perf_counter()
    data = parts.data
    plain = data.train_set.unaugmented()
    with random_state.preserved():
        probe = parts.training.new_model()  # holds the states that are evaluated; the replay borrows the trained model
    _, choosing = validation_halves(data, parts.seed)
    on_choosing = StateEvaluation(probe, DataLoader(choosing, batch_size=data.eval_batch_size))
    on_test = StateEvaluation(probe, data.test_dataloader())
    before = evaluate_classifier(trained.model, data.test_dataloader())
    predictions = ModelPredictions(trained.model, plain)
    settings = parts.report
    update = model_update(parts.retraining, lambda dataset: parts.training.fit_dataset(dataset, data).model)
    total = len(data.train_set)
    counts = settings.counts_below(total)
    most = trainings_at_most(parts.cleansing, len(counts), len(ranked.scores), total)
    with (
        parts.runner.open(trained.model, data.train_dataloader(), log=trained.log) as run,
        shown(partial(update.update, run), most=most, progress=parts.runner.settings.progress) as retraining,
    ):
        outcomes = RetrainingCache(retraining, {CHOOSING: on_choosing, TEST: on_test})
        context = CleansingContext(
            labels=data.train_set.labels,
            predictions=predictions,
            evaluate=outcomes.mean(CHOOSING, parts.choose_by),
            evaluate_each=outcomes.each(CHOOSING, parts.choose_by),
            on_excess=parts.on_excess,
            seed=parts.seed,
        )
        selection = parts.cleansing.select(ranked.main, context)
        after = outcomes(selection)[TEST]
        errors = outcomes.mean(TEST, "error")
        curves = removal_curves(ranked.scores, errors, counts, chosen=selection)
    return Cleansed(selection=selection, before=before, after=after, curves=curves, seconds=perf_counter() - began)


def detections(parts: PipelineParts, ranked: Ranked) -> dict[str, Detection]:
    """Return how well each method detects the labels that were made wrong; empty if none were."""
    by_method = {name: detect_wrong_labels(parts.data, scores) for name, scores in ranked.scores.items()}
    return {name: detection for name, detection in by_method.items() if detection is not None}


def validation_halves(data: ImageData | VectorData, seed: int) -> tuple[Subset, Subset]:
    """Return the half of the validation set that scores are computed from, and the half to choose with."""
    return halve(len(data.val_set), seed=seed, labels=data.val_set.labels).subsets(data.val_set)


def _scores(parts: PipelineParts, trained: Trained, loader: DataLoader, query: Query, method: Any) -> Scores:
    train_loader = parts.data.train_dataloader()
    return parts.runner.run(trained.model, train_loader, loader, log=trained.log, query=query, estimator=method)


def _split(scores: Scores, count: int) -> tuple[Scores, Scores]:
    """Return the scores of the first ``count`` queries, and those of the others."""
    asked: Any = scores.provenance.get("query_values", [])

    def part(columns: slice, epochs: Tensor | None) -> Scores:
        errors = scores.standard_error
        return replace(
            scores,
            values=scores.values[:, columns],
            queries=scores.queries[columns],
            better=scores.better[columns],
            standard_error=None if errors is None else errors[:, columns],
            per_epoch=None if epochs is None else epochs[:, :, columns],
            provenance={**scores.provenance, "query_values": asked[columns]},
        )

    return part(slice(count), scores.per_epoch), part(slice(count, None), None)
