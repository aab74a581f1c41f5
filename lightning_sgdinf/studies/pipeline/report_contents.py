"""The contents of the report: examples, comparisons, explanations, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_sgdinf.cleansing import ModelPredictions
from lightning_sgdinf.evaluation import mcnemar_test
from lightning_sgdinf.report import BeforeAfter, Cost, Example, Explanation, Rendered, ReportData
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.pipeline.parts import PipelineParts
from lightning_sgdinf.studies.pipeline.stages import Cleansed, PipelineResult, Ranked, Trained
from lightning_sgdinf.zoo import ImageData


def report_contents(parts: PipelineParts, result: PipelineResult, command: str) -> ReportData:
    """Return everything that the report shows.

    Args:
        parts: Of the job.
        result: Of its stages.
        command: The command line.
    """
    trained, ranked, data = result.trained, result.ranked, parts.data
    labels = tuple(data.class_names[label] for label in data.train_set.labels.tolist())
    single = _of_held_out(ranked)
    held_out = {} if single is None else _held_out(parts, trained, ranked, single)
    subject = " and ".join(parts.choices[group] for group in ("dataset", "model") if group in parts.choices)
    flipped = () if data.flipped is None else data.flipped.nonzero().flatten().tolist()
    return ReportData(
        title=f"Training examples that helped and harmed: {subject or type(data).__name__}",
        scores=replace(ranked.main, labels=labels),
        asked={name: parts.choices[name] for name in sorted(parts.choices) if not name.startswith("hydra")},
        command=command,
        config=parts.config_text,
        examples=_training_examples(parts, trained),
        shown=parts.report.shown,
        corrupt=frozenset(flipped),
        detections=dict(result.detections),
        before_after=_changes(result.cleansed, noun="test images" if isinstance(data, ImageData) else "test examples"),
        curves=result.cleansed.curves,
        explanations=() if single is None else tuple(_explanations(parts, single, held_out)),
        costs=_costs(trained, ranked, result.cleansed),
        compared={name: scores for name, scores in ranked.scores.items() if scores is not ranked.main},
        single=single,
        held_out=held_out,
    )


def _changes(cleansed: Cleansed, *, noun: str) -> tuple[BeforeAfter, ...]:
    before, after = cleansed.before, cleansed.after
    where: dict[str, Any] = {"removed": len(cleansed.selection), "measured_on": before.count, "noun": noun}
    where["reason"] = cleansed.selection.reason
    return (
        BeforeAfter(
            metric="test error",
            before=(before.error,),
            after=(after.error,),
            test=mcnemar_test(before.wrong, after.wrong),
            **where,
        ),
        BeforeAfter(metric="mean test loss", before=(before.loss,), after=(after.loss,), percent=False, **where),
    )


def _costs(trained: Trained, ranked: Ranked, cleansed: Cleansed) -> tuple[Cost, ...]:
    return (
        Cost(part="training, recorded", seconds=trained.seconds),
        Cost(part="record on disk", size_bytes=trained.record_bytes()),
        *(Cost(part=f"ranking by {name}", seconds=seconds) for name, seconds in ranked.seconds.items()),
        Cost(part="choosing, retraining and curves", seconds=cleansed.seconds),
    )


def _training_examples(parts: PipelineParts, trained: Trained) -> Mapping[int, Example]:
    data = parts.data
    predicted = _predictions(trained, data.train_set, range(len(data.train_set)))

    def shown(index: int) -> Example:
        return Example(
            **_content(data.train_set.shown(index)),
            label=data.class_names[int(data.train_set.labels[index])],
            true_label=None if data.flipped is None else data.class_names[int(data.true_labels[index])],
            prediction=data.class_names[predicted[index]],
        )

    return Rendered(range(len(data.train_set)), shown)


def _of_held_out(ranked: Ranked) -> Scores | None:
    """Return scores of single validation examples, named by their ids in the whole validation set."""
    if ranked.explained is None:
        return None
    kinds = (name.rpartition(" ")[0] for name in ranked.explained.queries)
    names = tuple(f"{kind} {index}" for kind, index in zip(kinds, ranked.explained_ids, strict=True))
    return replace(ranked.explained, queries=names)


def _held_out(parts: PipelineParts, trained: Trained, ranked: Ranked, single: Scores) -> dict[str, Example]:
    data = parts.data
    predicted = _predictions(trained, data.val_set, ranked.explained_ids)
    return {
        query: Example(
            **_content(data.val_set.shown(index)),
            label=data.class_names[int(data.val_set.labels[index])],
            prediction=data.class_names[place],
        )
        for query, index, place in zip(single.queries, ranked.explained_ids, predicted, strict=True)
    }


def _explanations(parts: PipelineParts, single: Scores, held_out: Mapping[str, Example]) -> Iterable[Explanation]:
    for query, example in list(held_out.items())[: parts.report.cases]:
        worst = single.most_harmful(parts.report.causes, query)
        yield Explanation(
            title=f"{example.label}, read as {example.prediction}",
            example=example,
            causes=tuple(zip(worst.example_ids, worst.scores, strict=True)),
            query=query,
            better=worst.better,
        )


def _content(shown: Any) -> dict[str, Any]:
    """Return an example as an image, a text or a row."""
    if isinstance(shown, Tensor):
        return {"image": shown.permute(1, 2, 0).numpy()}
    return {"text": shown} if isinstance(shown, str) else {"row": shown}


def _predictions(trained: Trained, dataset: Any, ids: Sequence[int]) -> list[int]:
    return ModelPredictions(trained.model, dataset.unaugmented())(ids).tolist()
