"""What the job found, as a `ReportData`: examples, comparisons, explanations, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_sgdinf.cleansing import ModelPredictions
from lightning_sgdinf.report import BeforeAfter, Cost, Example, Explanation, Rendered, ReportData
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.tasks.pipeline import Cleansed, Ranked, Trained, detections
from lightning_sgdinf.tasks.study import Study


def report_data(study: Study, trained: Trained, ranked: Ranked, cleansed: Cleansed, command: str) -> ReportData:
    """Everything the report shows."""
    settings, data = study.report, study.data
    labels = tuple(data.class_names[label] for label in data.train_set.labels.tolist())
    single = _of_held_out(ranked)
    held_out = {} if single is None else _held_out(study, trained, ranked, single)
    subject = " and ".join(study.choices[group] for group in ("dataset", "model") if group in study.choices)
    flipped = () if data.flipped is None else data.flipped.nonzero().flatten().tolist()
    return ReportData(
        title=f"Training examples that helped and harmed: {subject or type(data).__name__}",
        scores=replace(ranked.main, labels=labels),
        asked={name: study.choices[name] for name in sorted(study.choices) if not name.startswith("hydra")},
        command=command,
        config=study.config_text,
        examples=_training_examples(study, trained),
        shown=settings.shown,
        corrupt=frozenset(flipped),
        detections=detections(study, ranked),
        before_after=_changes(cleansed),
        curves=cleansed.curves,
        explanations=() if single is None else tuple(_explanations(study, single, held_out)),
        costs=_costs(trained, ranked, cleansed),
        compared={name: scores for name, scores in ranked.scores.items() if scores is not ranked.main},
        single=single,
        held_out=held_out,
    )


def _changes(cleansed: Cleansed) -> tuple[BeforeAfter, ...]:
    removed = len(cleansed.selection)
    return (
        BeforeAfter(
            metric="test error", before=(cleansed.before.error,), after=(cleansed.after.error,), removed=removed
        ),
        BeforeAfter(
            metric="test loss",
            before=(cleansed.before.loss,),
            after=(cleansed.after.loss,),
            removed=removed,
            percent=False,
        ),
    )


def _costs(trained: Trained, ranked: Ranked, cleansed: Cleansed) -> tuple[Cost, ...]:
    size = sum(file.stat().st_size for file in Path(trained.log).rglob("*") if file.is_file())
    return (
        Cost(part="training, recorded", seconds=trained.seconds),
        Cost(part="record on disk", size_bytes=size),
        *(Cost(part=f"ranking by {name}", seconds=seconds) for name, seconds in ranked.seconds.items()),
        Cost(part="choosing, retraining and curves", seconds=cleansed.seconds),
    )


def _training_examples(study: Study, trained: Trained) -> Mapping[int, Example]:
    data = study.data
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
    """Scores of single validation examples, named by their ids in the whole validation set."""
    if ranked.explained is None:
        return None
    kinds = (name.rpartition(" ")[0] for name in ranked.explained.queries)
    names = tuple(f"{kind} {index}" for kind, index in zip(kinds, ranked.explained_ids, strict=True))
    return replace(ranked.explained, queries=names)


def _held_out(study: Study, trained: Trained, ranked: Ranked, single: Scores) -> dict[str, Example]:
    data = study.data
    predicted = _predictions(trained, data.val_set, ranked.explained_ids)
    return {
        query: Example(
            **_content(data.val_set.shown(index)),
            label=data.class_names[int(data.val_set.labels[index])],
            prediction=data.class_names[place],
        )
        for query, index, place in zip(single.queries, ranked.explained_ids, predicted, strict=True)
    }


def _explanations(study: Study, single: Scores, held_out: Mapping[str, Example]) -> Iterable[Explanation]:
    for query, example in list(held_out.items())[: study.report.cases]:
        worst = single.most_harmful(study.report.causes, query)
        yield Explanation(
            title=f"{example.label}, read as {example.prediction}",
            example=example,
            causes=tuple(zip(worst.example_ids, worst.scores, strict=True)),
            query=query,
            better=worst.better,
        )


def _content(shown: Any) -> dict[str, Any]:
    """What an example looks like: an image, a text or a row."""
    if isinstance(shown, Tensor):
        return {"image": shown.permute(1, 2, 0).numpy()}
    return {"text": shown} if isinstance(shown, str) else {"row": shown}


def _predictions(trained: Trained, dataset: Any, ids: Sequence[int]) -> list[int]:
    return ModelPredictions(trained.model, dataset.unaugmented())(ids).tolist()
