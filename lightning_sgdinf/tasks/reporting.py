"""What the job found, as a `ReportData`: pictures of examples, comparisons, explanations, costs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from lightning_sgdinf.report import BeforeAfter, Cost, Example, Explanation, ReportData
from lightning_sgdinf.tasks.pipeline import Cleansed, Ranked, Trained, detections
from lightning_sgdinf.tasks.study import Study
from lightning_sgdinf.zoo import ImageData, ImageDataset


def report_data(study: Study, trained: Trained, ranked: Ranked, cleansed: Cleansed, command: str) -> ReportData:
    """Everything the report shows."""
    scores, settings, data = ranked.main, study.report, study.data
    explanations = tuple(_explanations(study, trained, ranked))
    shown = {
        *scores.most_harmful(settings.shown).example_ids,
        *scores.most_helpful(settings.shown).example_ids,
        *(i for explanation in explanations for i, _ in explanation.causes),
    }
    flipped = data.flipped
    subject = " and ".join(study.choices[group] for group in ("dataset", "model") if group in study.choices)
    return ReportData(
        title=f"Training examples that helped and harmed: {subject or type(data).__name__}",
        scores=scores,
        asked={name: study.choices[name] for name in sorted(study.choices) if not name.startswith("hydra")},
        command=command,
        config=study.config_text,
        examples={i: _training_example(data, i) for i in sorted(shown)},
        shown=settings.shown,
        corrupt=None if flipped is None else frozenset(flipped.nonzero().flatten().tolist()),
        detections=detections(study, ranked),
        before_after=_changes(cleansed),
        curves=cleansed.curves,
        explanations=explanations,
        costs=_costs(trained, ranked, cleansed),
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


def _training_example(data: ImageData, index: int) -> Example:
    true_label = None if data.flipped is None else int(data.true_labels[index])
    return _example(data, data.train_set, index, true_label)


def _example(data: ImageData, dataset: ImageDataset, index: int, true_label: int | None = None) -> Example:
    label = data.class_names[int(dataset.labels[index])]
    return Example(
        image=dataset.pixels(index).permute(1, 2, 0).numpy(),
        label=label,
        true_label=None if true_label is None else data.class_names[true_label],
    )


def _explanations(study: Study, trained: Trained, ranked: Ranked) -> Iterable[Explanation]:
    scores = ranked.explained
    if scores is None:
        return
    data, causes = study.data, study.report.causes
    for column, index in enumerate(ranked.explained_ids):
        with torch.no_grad():
            device = next(trained.model.parameters()).device
            predicted = int(trained.model.eval()(data.val_set[index][0][None].to(device)).argmax())
        example = _example(data, data.val_set, index)
        worst = scores.most_harmful(causes, column)
        yield Explanation(
            title=f"{example.label}, read as {data.class_names[predicted]}",
            example=example,
            causes=tuple(zip(worst.example_ids, worst.scores, strict=True)),
            query=f"{scores.queries[column].split(' of ')[0]} of this validation image",
            better=scores.better[column],
        )
