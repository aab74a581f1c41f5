"""The first words of a page of merged runs: what cleansing changed in the jobs of a sweep, and how sure that is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_sgdinf.evaluation import paired_t_test
from lightning_sgdinf.studies.merged_tables import named

_CHANGES = (("test_error_before", "test_error_after", 100.0, " %"), ("before", "after", 1.0, ""))
"""Columns of a job's row with a measure before and after, its factor and its unit."""
_MOST = 6  # configurations that a head names


@dataclass(frozen=True, kw_only=True)
class Change:
    """A measure before and after cleansing in the jobs of one configuration.

    Attributes:
        name: Of the configuration.
        measure: What it is.
        before: One value per job.
        after: In the same order.
        unit: Of the values, with its blank.
    """

    name: str
    measure: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    unit: str

    def sentence(self) -> str:
        """Return means before and after, and in how many jobs it fell and rose."""
        before, after = np.array(self.before), np.array(self.after)
        fell, rose = int((after < before).sum()), int((after > before).sum())
        moved = f"{before.mean():.4g}{self.unit} before, {after.mean():.4g}{self.unit} after"
        jobs = "one job" if len(after) == 1 else f"means of {len(after)} jobs: lower in {fell}, higher in {rose}"
        return f"{self.name}, {self.measure}: {moved} ({jobs})."

    def test(self) -> str:
        """Return whether the change is beyond chance."""
        if len(self.before) < 2:
            return f"{self.name}: one job, so whether another seed would change likewise is not known."
        test = paired_t_test(self.before, self.after)
        return f"{self.name}: the change {'is beyond' if test.significant else 'may be'} chance ({test.sentence()})."


def changes(rows: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Return what cleansing changed, a value per configuration, the lowest mean after first."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, row in named(rows):
        groups[name].append(row)
    changed = []
    for name, group in groups.items():
        for first, second, factor, unit in _CHANGES:
            pairs = [(row[first], row[second]) for row in group if _are_numbers(row.get(first), row.get(second))]
            if pairs:
                before, after = (tuple(factor * float(value) for value in side) for side in zip(*pairs, strict=True))
                measure = str(group[0].get("measured", "test error"))
                changed.append(Change(name=name, measure=measure, before=before, after=after, unit=unit))
                break
    return sorted(changed, key=lambda change: float(np.mean(change.after)))


def brief(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what was found, and how sure that is; nothing where the jobs cleansed nothing."""
    changed = changes(rows)
    more = (f"{len(changed) - _MOST} more configurations are in the tables.",) if len(changed) > _MOST else ()
    return (*(change.sentence() for change in changed[:_MOST]), *more), tuple(c.test() for c in changed[:_MOST])


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and np.isfinite(value) for value in values)
