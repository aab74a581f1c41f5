"""A fit that is resumed from a checkpoint goes on in the log it began.

Every checkpoint gets a bookmark: which log, how many steps of it, and checksums of the state there. A later fit that
starts from the checkpoint finds the log by it, drops what was recorded after the checkpoint was saved, and goes on;
where log and checkpoint do not belong together, it says so before it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import LogError, ResumeError
from lightning_sgdinf.log import CONTINUED, Header, Json, RunLog, Step, read_header, recover
from lightning_sgdinf.plain_text import printable
from lightning_sgdinf.state import Layout

CHECKPOINT_KEY = "lightning_sgdinf"
"""Under which a checkpoint keeps its bookmarks."""

DATA = "data"
"""Member of `Header.extra`: a checksum of what the first data set kept in the beginning."""

_MOST = 1 << 53
_SAME = ("model", "optimizer", "parameters", "constant_digest", "precision", "datasets")


class NoLogError(ResumeError):
    """There is nothing to go on with; a new log can be begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """The place in a log at which a checkpoint stands.

    Attributes:
        run_id: Of the log.
        path: Of the log then, absolute.
        steps: Number of steps taken; the checkpoint has the state after the last of them.
        last: Checksums of the last of them and of the state before it, see `footprint`; ``None`` if they are not known.
        tensors: CRC-32 of each tensor of the checkpoint's state by label.
        numbered: Examples that have got running numbers as ids.
        lost: The log could not be written any more: says from which checkpoint it can go on. Empty if it could.
    """

    run_id: str
    path: str
    steps: int
    last: tuple[int, int] | None
    tensors: Mapping[str, int]
    numbered: int = 0
    lost: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters in the checkpoint's state."""
        return tuple(label.removeprefix("param ") for label in self.tensors if label.startswith("param "))

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Add it to those that a checkpoint has; there is one per recorder."""
        checkpoint.setdefault(CHECKPOINT_KEY, []).append(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A log that goes on.

    Attributes:
        path: Of the log.
        header: Of the run so far.
        bookmark: The place at which to go on.
    """

    path: Path
    header: Header
    bookmark: Bookmark


def lost_bookmark(run_id: str, path: Path, usable: str) -> Bookmark:
    """Return the bookmark of a checkpoint that is saved when the log cannot be written any more.

    Args:
        run_id: Of the log.
        path: Of the log.
        usable: When the last checkpoint was saved from which the log can go on; empty if none was.
    """
    lost = (
        f"the last checkpoint from which the log can go on was saved {usable}"
        if usable
        else "there is no checkpoint from which the log can go on"
    )
    return Bookmark(run_id=run_id, path=str(path.absolute()), steps=0, last=None, tensors={}, lost=lost)


def bookmarks_of(checkpoint: Mapping[str, Any]) -> tuple[Bookmark, ...]:
    """Return the bookmarks of a checkpoint; what is none is skipped."""
    entries = checkpoint.get(CHECKPOINT_KEY)
    known = [_bookmark(entry) for entry in entries] if isinstance(entries, (list, tuple)) else []
    return tuple(bookmark for bookmark in known if bookmark is not None)


def _bookmark(entry: Any) -> Bookmark | None:
    """Return a bookmark of a checkpoint, which may be anybody's; ``None`` for what is none."""
    if not isinstance(entry, Mapping) or any(f.name not in entry and f.default is MISSING for f in fields(Bookmark)):
        return None
    last, tensors = entry["last"], entry["tensors"]
    texts = [entry["run_id"], entry["path"], entry.get("lost", "")]
    counts = [entry["steps"], entry.get("numbered", 0)]
    right = (
        all(isinstance(text, str) for text in texts)
        and all(type(count) is int and 0 <= count < _MOST for count in counts)
        and (counts[0] > 0 or bool(texts[2]))
        and (last is None or (isinstance(last, (list, tuple)) and len(last) == 2))
        and isinstance(tensors, Mapping)
        and all(isinstance(label, str) for label in tensors)
    )
    if not right:
        return None
    run_id, path, lost = map(printable, texts)
    return Bookmark(
        run_id=run_id,
        path=path,
        steps=counts[0],
        last=(last[0], last[1]) if last else None,
        tensors=tensors,
        numbered=counts[1],
        lost=lost,
    )


def find_continuation(
    paths: Sequence[Path], bookmarks: Sequence[Bookmark], *, tell: Callable[[str], None]
) -> Continuation:
    """Return the log that a checkpoint belongs to, sealed if its writer was killed.

    Args:
        paths: At which it may be; the first is the one that the user wants.
        bookmarks: The checkpoint's.
        tell: Called with a sentence about what will be dropped.

    Raises:
        ResumeError: There is none, or it does not go as far as the checkpoint, or went another way.
        LogLockedError: Another process is writing it.
    """
    if not bookmarks:
        raise NoLogError("the checkpoint was saved without a TrajectoryRecorder, or before the first recorded step")
    lost = [b for b in bookmarks if b.lost]
    bookmarks = [b for b in bookmarks if not b.lost]
    if not bookmarks:
        raise NoLogError(
            f"the checkpoint was saved when the log of run {lost[0].run_id} in {lost[0].path} could not be written any "
            f"more; {lost[0].lost}"
        )
    for path in paths:
        header = _header(path)
        bookmark = next((b for b in bookmarks if header is not None and b.run_id == header.run_id), None)
        if header is not None and bookmark is not None:
            _check(path, bookmark, tell)
            return Continuation(path=path, header=header, bookmark=bookmark)
    there, bookmark = _header(paths[0]), bookmarks[0]
    holds = "there is no log" if there is None else f"there is the log of another run ({there.run_id})"
    raise NoLogError(
        f"the checkpoint belongs to the log of run {bookmark.run_id}, whose steps 0 to {bookmark.steps - 1} were "
        f"recorded in {bookmark.path}, and {holds} in {paths[0]}. To go on in that log, give TrajectoryRecorder its "
        "path, or move it here"
    )


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except LogError:
        return None


def _check(path: Path, bookmark: Bookmark, tell: Callable[[str], None]) -> None:
    """Check that the log is at least as long as the checkpoint, and on the way that led to it."""
    steps, at = recover(path).steps, bookmark.steps
    if steps < at:
        raise ResumeError(
            f"{path} has {steps} steps and the checkpoint stands at {at}: steps {steps} to {at - 1} are not in the log "
            "(the power failed, or the log was copied too early). Resume from an earlier checkpoint, or record the "
            "rest by itself: TrajectoryRecorder(<another path>, resume='never')"
        )
    with RunLog.open(path) as log:
        known = footprint(log.step(at - 1)) if at <= len(log) else None, log.state_checksum(at - 1)
    if any(None not in pair and pair[0] != pair[1] for pair in zip(known, bookmark.last or (None, None), strict=True)):
        raise ResumeError(
            f"{path} went another way than the checkpoint, which leads to another step {at - 1}: the log was continued "
            "from an earlier checkpoint after this one was saved. Resume from a checkpoint that was saved since then, "
            "or record the rest by itself: TrajectoryRecorder(<another path>, resume='never')"
        )
    if steps > at:
        tell(
            f"{path} goes on with step {at}, where the checkpoint stands; its steps {at} to {steps - 1}, taken after "
            "the checkpoint was saved, are dropped"
        )


def continued_header(earlier: Header, present: Header, bookmark: Bookmark) -> Header:
    """Return the header of a log that goes on.

    Args:
        earlier: Of the log.
        present: Of the fit that goes on.
        bookmark: The place at which it does.

    Raises:
        ResumeError: They are not runs of the same model, optimizer and data.
    """
    differ = [name for name in _SAME if getattr(earlier, name) != getattr(present, name)]
    if differ:
        name = differ[0]
        raise ResumeError(
            f"{bookmark.path} cannot be continued: its run has another {name.replace('_', ' ')}, "
            f"{getattr(earlier, name)!r:.200}, expected {getattr(present, name)!r:.200}. Record the rest by itself: "
            "TrajectoryRecorder(<another path>, resume='never')"
        )
    data = earlier.extra.get(DATA), present.extra.get(DATA)
    if None not in data and data[0] != data[1]:
        raise ResumeError(
            f"{bookmark.path} cannot be continued: the training data are others than its run began with, so that the "
            "same indices are other examples. Pass the same data (a split needs a seed), or record the rest by itself: "
            "TrajectoryRecorder(<another path>, resume='never')"
        )
    entry: dict[str, Json] = {
        "step": bookmark.steps,
        "created": present.created,
        "keep": present.keep,
        "environment": dict(present.environment),
        **{name: present.extra.get(name) for name in ("starts_at", "max_epochs", "max_steps", "trainer")},
    }
    past = earlier.extra.get(CONTINUED, [])
    assert isinstance(past, list)
    extra = {**earlier.extra, **present.extra, CONTINUED: [*past, entry]}
    extra |= {name: earlier.extra[name] for name in ("starts_at", "trainer", _FIRST_AVERAGE) if name in earlier.extra}
    if _FIRST_AVERAGE not in earlier.extra:
        extra.pop(_FIRST_AVERAGE, None)
    reasons = dict.fromkeys(reason for reason in (earlier.replayable, present.replayable) if reason)
    keep = (
        earlier.keep if earlier.keep == present.keep else f"{earlier.keep}; from step {bookmark.steps} {present.keep}"
    )
    return replace(earlier, keep=keep, replayable=". ".join(reasons), extra=extra)


_FIRST_AVERAGE = "average_before_first_step"


def footprint(step: Step) -> int:
    """Return a checksum by which a step is known again: of what process 0 fed into it, and of its loss."""
    own = [draw.example_ids.tobytes() for m in step.micro_batches if not m.rank for draw in m.draws]
    return crc32(f"{step.global_step} {step.loss!r}".encode() + b"".join(own))


def tensor_checksums(layout: Layout, flat: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the CRC-32 of each tensor of a packed state by label; over its dtype and shape, too."""
    checksums = {}
    for spec, (*_, value) in zip(layout.specs, layout.unpack(flat).items(), strict=True):
        data = value.detach().contiguous().view(-1).view(torch.uint8).numpy().data if value.numel() else b""
        checksums[spec.label] = crc32(data, crc32(f"{spec.dtype}{spec.shape}".encode()))
    return checksums


def differing(present: Mapping[str, int], expected: Mapping[str, int]) -> tuple[str, ...]:
    """Return the labels of the tensors that differ, or that only one has."""
    labels: Iterable[str] = dict.fromkeys((*expected, *present))
    return tuple(label for label in labels if present.get(label) != expected.get(label))
