"""Forecast the size of a log from what its states take, before it is written.

A segment of ``m`` stored states has ``o`` plain anchors at either end, ``o`` the order of the codec's differences, and
``m - o`` rows of differences, so that

    bytes = sum over segments (2 min(o, m) plain + max(0, m - o) row) + final state + records

with at most as many states in a segment as its writer lets in. What a row takes depends on how far the states are
apart: it is measured on real ones. States further apart than was measured are taken to need as many bytes more for each
doubling of the distance as the last doubling did, and never more than plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_sgdinf.log.bit_patterns import row_bytes, state_patterns
from lightning_sgdinf.log.codec_choice import best_codec, stored_bytes
from lightning_sgdinf.log.codecs import AUTO, Codec, codec_named
from lightning_sgdinf.log.pages import MAX_STEPS
from lightning_sgdinf.log.reader import RunLog
from lightning_sgdinf.log.segment_writer import SEGMENT_BYTES, most_states
from lightning_sgdinf.state import Layout, ModelState

_SLACK = 1.005  # of rows that compression makes larger
_PAGE_SLACK = 4096  # bytes of records that a segment has in reserve, usually


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCosts:
    """The bytes that the parts of a log take.

    Attributes:
        codec: Name of the codec; of ``"auto"`` the one that was chosen.
        order: Of its differences.
        plain: Bytes of a state before compression.
        rows: Bytes of a row of differences, by the distance in steps of the states it lies between; empty if no states
            are known, which is taken as if nothing got smaller.
        step: Bytes of the record of a step beside its state.
        segment: Bytes of a segment beside states and records.
        early: Segments at the beginning, before the optimizer had all of its state: each ends with a kind of state.
        end: Bytes of the end mark beside the final state.
        averages: States that the end mark has besides: 1 where the weights are averaged.
    """

    codec: str
    order: int
    plain: int
    rows: Mapping[int, float] = field(default_factory=dict)
    step: float = 0.0
    segment: float = 0.0
    early: int = 0
    end: float = 0.0
    averages: float = 0.0

    def row(self, distance: float) -> float:
        """Return the bytes of a row of differences of states so many steps apart."""
        known = sorted(self.rows)
        if not known or not self.plain:
            return float(self.plain)
        if distance <= known[-1]:
            return float(np.interp(math.log2(max(distance, 1)), np.log2(known), [self.rows[d] for d in known]))
        last = self.rows[known[-1]]
        slope = 0.0
        if len(known) > 1:
            slope = max(0.0, last - self.rows[known[-2]]) / math.log2(known[-1] / known[-2])
        return max(last, min(last + slope * math.log2(distance / known[-1]), self.plain * _SLACK))

    def size(self, steps: int, stored: int, distance: float) -> int:
        """Return the bytes of a log.

        Args:
            steps: Of the run.
            stored: How many states are stored before the final one.
            distance: Of two that follow one another, in steps.
        """
        most = max(1, min(most_states(self.plain, SEGMENT_BYTES), int(MAX_STEPS // max(distance, 1))))
        full, rest = divmod(stored, most)
        states = full * self._states(most, distance) + self._states(rest, distance)
        segments = max(full + (rest > 0), -(-steps // MAX_STEPS)) + self.early
        end = self.end + self.plain * (1 + self.averages)
        return round(states + segments * self.segment + steps * self.step + end)

    def _states(self, count: int, distance: float) -> float:
        """Return the bytes of the states of one segment."""
        return 2 * min(self.order, count) * self.plain + max(0, count - self.order) * self.row(distance)


def costs_of_layout(layout: Layout, codec: str) -> LogCosts:
    """Return what is known of a log before there is any state: sizes without compression.

    Args:
        layout: Of the states.
        codec: Its name.
    """
    known = codec_named("delta" if codec == AUTO else codec)
    return LogCosts(codec=known.name, order=known.order, plain=row_bytes(layout))


def costs_of_log(log: RunLog, codec: str) -> LogCosts:
    """Return what the parts of a log take, measured on one that is there and on its last states.

    Args:
        log: With states of steps that follow one another at its end, at least one beside the final one, for rows to be
            measured.
        codec: In which the states are to be stored; need not be the log's own.
    """
    states = _last_states(log)
    layout = Layout.of(states[0])
    chosen = _chosen(codec, states)
    overhead, of_segments, batches, further, steps, early = [], 0, 0, 0.0, 0, 0
    for segment in log.segments():  # one at a time: few are open at once
        size, parts = segment.path.stat().st_size, segment.sizes()
        first, each, of_batches = segment.record_sizes()
        if (count := len(segment.steps)) > steps:
            steps, further = count, each
        states_in_it = sum(s for name, s in parts.items() if name.split("/")[0] in ("state", "anchor"))
        overhead.append(size - states_in_it - of_batches - parts["page"] + _PAGE_SLACK + first - each)
        early += segment.layout != layout
        batches += of_batches
        of_segments += size
    plain = row_bytes(layout)
    average = 0 if log.average is None else sum(v.numel() * v.element_size() for v in log.average.values())
    known_end = log.size_bytes - of_segments
    return LogCosts(
        codec=chosen.name,
        order=chosen.order,
        plain=plain,
        rows=_rows(chosen, states),
        step=further + batches / max(1, len(log)),
        segment=max(overhead, default=0.0),
        early=early,
        end=max(0.0, known_end - plain - average),
        averages=average / max(1, plain),
    )


def _last_states(log: RunLog) -> list[ModelState]:
    """Return the last states that lie one step apart and have one layout, the newest first, five at most."""
    stored = {int(i) for i in log.state_indices}
    states = [log.state(len(log))]
    layout = Layout.of(states[0])
    while len(states) < _LOOKED_AT and (index := len(log) - len(states)) in stored:
        state = log.state(index)
        if Layout.of(state) != layout:
            break
        states.append(state)
    return states


_LOOKED_AT = 5  # states: distances of 1, 2 and 4 steps


def _chosen(codec: str, states: Sequence[ModelState]) -> Codec:
    if codec != AUTO:
        return codec_named(codec)
    return best_codec([_patterns(s) for s in reversed(states[:3])]) if len(states) >= 3 else codec_named("delta")


def _rows(codec: Codec, states: Sequence[ModelState]) -> dict[int, float]:
    """Return the bytes of a row by distance, for the distances that states give."""
    need, rows = max(1, codec.order), {}
    distance = 1
    while need * distance < len(states):
        apart = [_patterns(states[place * distance]) for place in range(need, -1, -1)]
        rows[distance] = stored_bytes(codec, apart)
        distance *= 2
    return rows


def _patterns(state: ModelState) -> Mapping[str, np.ndarray]:
    layout = Layout.of(state)
    flat = layout.empty()
    layout.pack(state, flat)
    return state_patterns(flat)
