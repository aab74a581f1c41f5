"""Plan which states to store, so that a log stays within a number of bytes.

The plan is made before the first state is stored, of what a state and a step's record take, how many steps are to come,
and how well states are known to compress: every state, if all fit; otherwise every ``k``-th, from which the others are
recomputed; where a step re-run would not give the same bits, the last epochs; and the final state at least.
`lightning_sgdinf.record.budgeted_keep` adapts it when the run is under way.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass

from lightning_sgdinf.checkpointing import MEMORY_BYTES, held_in, states_in, steps_again
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Json
from lightning_sgdinf.log.codecs import CODECS

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_RATIOS = {"none": (1.0, 1.0), "delta": (1.6, 1.15), "small": (1.85, 1.15), "delta2": (1.85, 1.15), "auto": (1.6, 1.15)}
"""Factor by which a codec is taken to make states smaller: successive ones, and those further apart."""

_FILES = 256 << 10  # bytes of HDF5's own in the last segment and the end mark
_SLACK = 1.03  # of chunks that compression makes larger, or that are not full
_INCOMPRESSIBLE = 1.1  # of states that do not get smaller, and their anchors


@dataclass(frozen=True, slots=True)
class Budget:
    """Store as many states as fit into a number of bytes.

    Args:
        size_bytes: Of the log at most, at least 1; ids and random states, which are always recorded, included.
    """

    size_bytes: int

    def __post_init__(self) -> None:
        if not isinstance(self.size_bytes, int) or self.size_bytes < 1:
            raise ConfigurationError(f"a budget is a number of bytes of at least 1, got {self.size_bytes!r}.")

    def __str__(self) -> str:
        unit = next((u for u in ("TB", "GB", "MB", "kB") if self.size_bytes % _UNITS[u[0]] == 0), "B")
        return f"budget:{self.size_bytes // _UNITS[unit[:-1]]}{unit}"


def parse_budget(text: str) -> Budget | None:
    """Return the budget of a text such as ``"budget:2GB"`` or ``"budget: 500 MiB"``; ``None`` if it is none."""
    match = re.fullmatch(r"budget:\s*(\d+(?:\.\d+)?)\s*([kMGT]|[KMG]i)?B", text.strip())
    return None if match is None else Budget(int(float(match[1]) * _UNITS[match[2] or ""]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """All that is known of a run when its first step has been taken.

    Attributes:
        state_bytes: Of an uncompressed state: parameters, buffers and what the optimizer keeps.
        record_bytes: Of everything else that is recorded of a step, at most.
        codec: Of the states.
        steps: Number of optimizer steps to come; ``None`` if nobody knows.
        epochs: Number of epochs, likewise.
        repeatable: A step re-run gives the same bits.
        averaged: There will be averaged parameters, too.
    """

    state_bytes: int
    record_bytes: int
    codec: str = "delta"
    steps: int | None = None
    epochs: int | None = None
    repeatable: bool = True
    averaged: bool = False

    @property
    def anchors(self) -> int:
        """Plain states that a segment of the log has besides."""
        return CODECS[self.codec].order if self.codec in CODECS else max(codec.order for codec in CODECS.values())

    @property
    def ending_bytes(self) -> int:
        """Bytes of the end of the log at most: the final state, the average, and the last anchors."""
        return int((1 + self.averaged + self.anchors) * self.state_bytes * _SLACK) + _FILES

    @property
    def largest_bytes(self) -> int:
        """Bytes that storing one state takes at most: it may be the only one of a segment."""
        return int((1 + self.anchors) * self.state_bytes * _SLACK)

    def expected_bytes(self, k: int) -> float:
        """Return the bytes that storing one state is taken to take, if every ``k``-th is stored."""
        successive, apart = _RATIOS.get(self.codec, (1.0, 1.0))
        return self.state_bytes / (successive if k == 1 else apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A choice of states to store, and its cost in replay.

    Attributes:
        keep: ``"every_step"``, ``"every(k)"``, ``"last_epochs(n)"`` or ``"final"``.
        every: ``k``; 0 if no state but the last is stored.
        last_epochs: ``n``, if only the last epochs are stored.
        steps: Expected steps; ``None`` if nobody knows.
        log_bytes: Expected size of the log; ``None`` for a run of unknown length.
        forward_passes: Trainings, forwards only, to rebuild what is not stored.
        memory_bytes: Of the rebuilt states in memory.
    """

    keep: str
    every: int
    last_epochs: int = 0
    steps: int | None = None
    log_bytes: int | None = None
    forward_passes: float = 0.0
    memory_bytes: int = 0

    def document(self) -> dict[str, Json]:
        """Return the plan for the header."""
        return asdict(self)

    def sentence(self, budget: Budget) -> str:
        """Return the plan for the user."""
        size = "" if self.log_bytes is None else f", about {shown_bytes(self.log_bytes)}"
        length = "a run of unknown length" if self.steps is None else f"{self.steps:,} steps"
        if not self.every:
            cost = "only methods that look at the trained model alone can be used"
        elif self.last_epochs:
            cost = "replay goes back to the first stored epoch"
        elif self.every == 1:
            cost = "replay computes no state again"
        else:
            cost = (
                f"replay does {self.forward_passes:.1f} more trainings, forwards only, and keeps "
                f"{shown_bytes(self.memory_bytes)} of rebuilt states in memory"
            )
        return f"{str(budget)!r} for {length}: keep='{self.keep}'{size}; {cost}"


def make_plan(budget: Budget, prospect: Prospect) -> Plan:
    """Return the plan that fits into a budget.

    Args:
        budget: The bytes.
        prospect: Of the run.
    """
    steps = prospect.steps
    records = (steps or 0) * prospect.record_bytes
    free = budget.size_bytes - prospect.ending_bytes - records
    final = Plan(keep="final", every=0, steps=steps, log_bytes=records + prospect.state_bytes)
    if free < prospect.largest_bytes:
        return final
    if not prospect.repeatable:
        return (_contiguous(steps, free, prospect) if steps else None) or final
    return every_kth(_spacing(steps, free, prospect) if steps else 1, prospect)


def _spacing(steps: int, free: int, prospect: Prospect) -> int:
    """Return the smallest ``k`` for which every ``k``-th state of ``steps`` fits into ``free`` bytes."""
    if steps * prospect.expected_bytes(1) <= free:
        return 1
    return min(max(2, math.ceil(steps * prospect.expected_bytes(2) / free)), max(2, steps))


def every_kth(k: int, prospect: Prospect) -> Plan:
    """Return the plan that stores every ``k``-th state."""
    steps = prospect.steps
    max_states = states_in(MEMORY_BYTES, prospect.state_bytes)
    stored = None if steps is None else -(-steps // k)
    return Plan(
        keep="every_step" if k == 1 else f"every({k})",
        every=k,
        steps=steps,
        log_bytes=None
        if stored is None or steps is None
        else int(stored * prospect.expected_bytes(k)) + steps * prospect.record_bytes + prospect.state_bytes,
        forward_passes=steps_again(k, held_in(max_states)) / k,
        memory_bytes=min(k, max_states) * prospect.state_bytes if k > 1 else 0,
    )


def _contiguous(steps: int, free: int, prospect: Prospect) -> Plan | None:
    """Return the plan that stores all states, or those of the last epochs that fit; ``None`` if not one does, or nobody
    knows the last.

    As if nothing could be compressed: were the last states left out after all, the others would be worth nothing.
    """
    each = prospect.state_bytes * _INCOMPRESSIBLE
    if steps * each <= free:
        return every_kth(1, prospect)
    epochs = prospect.epochs or 0
    per_epoch = -(-steps // max(epochs, 1))
    n = min(epochs, int(free / (per_epoch * each)))
    if n < 1:
        return None
    size = int(n * per_epoch * each) + steps * prospect.record_bytes + prospect.state_bytes
    return Plan(keep=f"last_epochs({n})", every=1, last_epochs=n, steps=steps, log_bytes=size)


def shown_bytes(count: float) -> str:
    """Return a number of bytes for people: ``"1.5 GB"``."""
    for unit in ("TB", "GB", "MB", "kB"):
        if count >= _UNITS[unit[0]]:
            return f"{count / _UNITS[unit[0]]:.3g} {unit}"
    return f"{count:.0f} bytes"
