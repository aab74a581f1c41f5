"""The content of a study's page: both tables, held-out failures and what became of them, and their supposed causes."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sgdinf.report import Example
from lightning_sgdinf.report.repair import FailureRow, RepairPage
from lightning_sgdinf.studies.repair.corruptions import Corrupted
from lightning_sgdinf.studies.repair.tables import Seed, identification, treatments
from lightning_sgdinf.zoo import ImageData

FAILURES, CAUSES = 12, 10
"""Held-out failures, and causes of each kind, that are shown."""


def repair_page(corrupted: Corrupted, own: Seed, seeds: Sequence[Seed], name: str) -> RepairPage:
    """Return what the page shows.

    Args:
        corrupted: One seed's data, for the pictures.
        own: The results of that seed.
        seeds: The results of all.
        name: Of the study's cell.
    """
    data = corrupted.data
    causes = {
        cause: tuple((j, _training_example(corrupted, j)) for j in _shown(row["selection"]))
        for cause, row in own["causes"].items()
        if "selection" in row
    }
    losses = {
        f"{cause}, {treatment}": tuple(
            seed["treated"][cause][treatment]["measures"]["test_loss"]
            for seed in seeds
            if "measures" in seed["treated"].get(cause, {}).get(treatment, {})
        )
        for cause, of_cause in own["treated"].items()
        for treatment, row in of_cause.items()
        if "measures" in row
    }
    return RepairPage(
        title=f"Repair: {name}",
        about=f"{corrupted.about}. {len(seeds)} seed{'s' * (len(seeds) > 1)}; pictures are of one.",
        tables=(treatments(seeds, name), identification(seeds, name)),
        losses=losses,
        failures=tuple(_failures(data, own)),
        causes=causes,
    )


def _failures(data: ImageData, own: Seed) -> list[FailureRow]:
    held_out = own["treated"]["none"]["before"]["held_out"]
    rows = []
    for place, example in enumerate(held_out[:FAILURES]):
        label = int(data.val_set.labels[example])
        answers = {
            f"{cause}, {treatment}": data.class_names[row["answers"][place]]
            for cause, of_cause in own["treated"].items()
            for treatment, row in of_cause.items()
            if "answers" in row
        }
        image = data.val_set.pixels(example).permute(1, 2, 0).numpy()
        rows.append(
            FailureRow(number=example, example=Example(image=image, label=data.class_names[label]), answers=answers)
        )
    return rows


def _training_example(corrupted: Corrupted, j: int) -> Example:
    data = corrupted.data
    given, true = int(data.train_set.labels[j]), int(data.true_labels[j])
    return Example(
        image=data.image(j).permute(1, 2, 0).numpy(),
        label=data.class_names[given],
        true_label=None if given == true else data.class_names[true],
    )


def _shown(selection: dict) -> list[int]:
    return [*selection["drop"], *map(int, selection["relabel"])][:CAUSES]
