"""Read a whole log once and hold it against its checksums."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning_sgdinf.errors import LogCorruptError, LogError
from lightning_sgdinf.log.documents import header_to_json
from lightning_sgdinf.log.records import CONTINUED, Header

if TYPE_CHECKING:
    from lightning_sgdinf.log.reader import RunLog


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `RunLog.verify` found.

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
        """Whether everything agrees."""
        return not self.problem


def verify_log(log: RunLog) -> VerifyReport:
    """Check every step, every stored state and every anchor of a log."""
    steps = states = 0
    try:
        for segment in log.segments():
            if not of_one_run(segment.header, log.header):
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
        if log.finished:
            log.state(len(log))
            states += 1
    except LogError as error:
        return VerifyReport(steps=steps, states=states, problem=str(error))
    return VerifyReport(steps=steps, states=states)


def of_one_run(earlier: Header, latest: Header) -> bool:
    """Whether a segment's header and the log's are of one run.

    They are equal, but where the run was continued in between: that may be for more epochs, storing other states.
    """
    if earlier.extra.get(CONTINUED) != latest.extra.get(CONTINUED):
        earlier, latest = (replace(h, keep="", replayable="", extra={}) for h in (earlier, latest))
    return header_to_json(earlier) == header_to_json(latest)
