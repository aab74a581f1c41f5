"""Read a whole log once and compare it with its checksums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lightning_sgdinf.errors import LogCorruptError, LogError
from lightning_sgdinf.log.documents import header_to_json
from lightning_sgdinf.log.records import CONTINUED, Header
from lightning_sgdinf.log.segment_reader import SegmentReader


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The outcome of `RunLog.verify`.

    Attributes:
        steps: Steps that agree with their checksums.
        states: Stored states that agree with theirs.
        problem: The first disagreement, with segment and step; empty if there is none.
    """

    steps: int
    states: int
    problem: str = ""

    @property
    def ok(self) -> bool:
        """True if everything agrees."""
        return not self.problem


def verify_segments(header: Header, segments: Iterable[SegmentReader], *, finished: bool) -> VerifyReport:
    """Check every step, every stored state and every anchor of a log.

    Args:
        header: Of the log.
        segments: All of them, in order.
        finished: There is a state after the last step. No segment has it; reading the end mark has checked it.

    Returns:
        What agrees, up to the first difference.
    """
    steps = states = 0
    try:
        for segment in segments:
            if not of_one_run(segment.header, header):
                raise LogCorruptError(
                    f"{segment.path}: the segment has another header than the log; restore the segment of this run"
                )
            stored = set(segment.steps.stored.tolist())
            for index in range(segment.first, segment.first + len(segment.steps)):
                segment.steps.step(index)
                segment.check_batches(index)
                steps += 1
                if index in stored:
                    segment.state(index)
                    states += 1
            segment.states.check_last_anchors()
    except LogError as error:
        return VerifyReport(steps=steps, states=states, problem=str(error))
    return VerifyReport(steps=steps, states=states + finished)


def of_one_run(earlier: Header, latest: Header) -> bool:
    """Tell if a segment's header and the log's are of one run.

    They are equal, but where the run was continued in between: that may be for more epochs, storing other states.
    """
    if earlier.extra.get(CONTINUED) != latest.extra.get(CONTINUED):
        earlier, latest = (replace(h, keep="", replayable="", extra={}) for h in (earlier, latest))
    return header_to_json(earlier) == header_to_json(latest)
