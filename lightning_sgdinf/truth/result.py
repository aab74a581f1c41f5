"""Truth: the effect of leaving examples out, measured by training again without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.certificate import Certificate, StepReplay
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Json, read_arrays, write_arrays
from lightning_sgdinf.ranking import Better
from lightning_sgdinf.scores import Scores, refuse_taken

KIND = "sgdinf-truth/1"
"""Name of the format of a file of measured changes."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Truth:
    """The measured change of every query for each set of examples that was left out of the same run.

    Attributes:
        values: ``query(without the set) - query(with all)``, float64 ``[M, Q]``.
        leave_out: The ``M`` sets, by example id.
        examples: ``N``.
        queries: ``Q`` names.
        better: The good direction of each query.
        base: ``query(with all)``, float64 ``[Q]``.
        labels: ``N`` labels, for display.
        first_step: The step from which the examples are left out.
        last_step: The query is asked of the model before this step; ``T`` for the final model.
        steps_taken: Training steps taken, those of all runs together: what it cost.
        at_once: Number of runs taken at once; 1 where they went one after another.
        seconds: Wall time.
        verified: Comparison of the run with nothing left out with the record.
        drift: Distance of the query with nothing left out, re-run at once with the others, from that of the recorded
            model, float64 ``[Q]``; rounding.
        notes: What a reader must know.
        provenance: Where it comes from: digests and versions.
    """

    values: Tensor
    leave_out: tuple[tuple[int, ...], ...]
    examples: int
    queries: tuple[str, ...]
    better: tuple[Better, ...]
    base: Tensor
    labels: tuple[str, ...] | None = None
    first_step: int = 0
    last_step: int
    steps_taken: int
    at_once: int
    seconds: float
    verified: StepReplay | None
    drift: Tensor
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Json] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.leave_out)

    def __repr__(self) -> str:
        return (
            f"Truth({len(self)} sets of {self.examples} examples left out, {len(self.queries)} queries, "
            f"{self.steps_taken} steps in {self.seconds:.1f} s, {self.at_once} runs at once)"
        )

    def scores(self) -> Scores:
        """Return the changes as `Scores`, where the sets are the single examples.

        Raises:
            ConfigurationError: If they are not, each example once.
        """
        ids = [members[0] for members in self.leave_out if len(members) == 1]
        if sorted(ids) != list(range(self.examples)) or len(ids) != len(self):
            raise ConfigurationError(
                f"scores: expected each of the {self.examples} examples left out once and alone, got {len(self)} sets; "
                "measure with leave_out=None"
            )
        values = torch.empty_like(self.values)
        values[torch.tensor(ids)] = self.values
        return Scores(
            values=values,
            queries=self.queries,
            labels=self.labels,
            better=self.better,
            verified=torch.ones(self.examples, dtype=torch.bool),
            certificate=Certificate(level="full", step_replay=self.verified, notes=self.notes),
            provenance={**self.provenance, "estimator": "counterfactual training", "seconds": self.seconds},
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write everything to one HDF5 file, which `load` reads back as an equal value.

        Raises:
            LogExistsError: The path is taken and ``overwrite`` was not asked for.
        """
        refuse_taken(path, overwrite=overwrite)
        arrays = {"values": self.values.numpy(), "base": self.base.numpy(), "drift": self.drift.numpy()}
        arrays |= pack_sets(self.leave_out)
        plain = ("examples", "first_step", "last_step", "steps_taken", "at_once", "seconds")
        attributes: dict[str, Any] = {name: getattr(self, name) for name in plain}
        attributes |= {"queries": list(self.queries), "better": list(self.better), "notes": list(self.notes)}
        attributes |= {"labels": None if self.labels is None else list(self.labels)}
        attributes |= {"verified": None if self.verified is None else asdict(self.verified)}
        write_arrays(path, arrays, attributes | {"provenance": dict(self.provenance)}, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> Truth:
        """Read what `save` wrote."""
        arrays, attributes = read_arrays(path, kind=KIND)
        stored: dict[str, Any] = dict(attributes)
        for name in ("queries", "better", "notes"):
            stored[name] = tuple(stored[name])
        if stored["labels"] is not None:
            stored["labels"] = tuple(stored["labels"])
        if stored["verified"] is not None:
            stored["verified"] = StepReplay(**stored["verified"])
        tensors = {n: torch.from_numpy(np.array(arrays[n])) for n in ("values", "base", "drift")}
        return cls(leave_out=unpack_sets(arrays), **tensors, **stored)


def pack_sets(sets: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return sets of example ids as two arrays: all members, and the size of each set."""
    members = np.concatenate([np.empty(0, np.int64), *(np.asarray(s, np.int64) for s in sets)])
    return {"members": members, "sizes": np.array([len(s) for s in sets], np.int64)}


def unpack_sets(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], ...]:
    """Return the sets that `pack_sets` packed."""
    parts = np.split(arrays["members"], np.cumsum(arrays["sizes"])[:-1])
    return tuple(tuple(part.tolist()) for part in parts)
