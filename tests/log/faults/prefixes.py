"""Every prefix of what is done to the files: the process dies, a write is torn, the power fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import LogError
from lightning_sgdinf.log.codec_choice import CodecChoice
from lightning_sgdinf.log.directory import WritableDirectory
from lightning_sgdinf.log.recovery import cut, recover
from lightning_sgdinf.log.store import LogStore
from lightning_sgdinf.state import Layout
from tests.log.cases import make_header, make_step, write_run
from tests.log.faults.crashing_disk import Disk, torn, without_power
from tests.log.faults.tally import Tally, assert_right, state
from tests.log.faults.traced import Call, NotPermitted, changes


@dataclass(frozen=True)
class Story:
    """Something that is done to a log, call by call.

    Attributes:
        name: Of it.
        prepare: Makes what is there before.
        action: Done in a child; is given a log's path, and tells how many steps are safe.
        power: Whether what it tells holds after a power failure, too.
    """

    name: str
    prepare: Callable[[Path], None]
    action: Callable[[Path, Callable[[int], None]], None]
    power: bool = True


def nothing(path: Path) -> None:
    """No log."""


def left_over(path: Path) -> None:
    """What a killed writer leaves: 30 flushed steps."""
    store = LogStore(
        WritableDirectory(path, present="refuse"), header=make_header(), codec=CodecChoice("delta2"), flush_every=3,
        segment_bytes=1, durable=True,
    )  # fmt: skip
    add(store, 0, 30)
    store.flush()
    store._segment.discard()
    store.directory.release()


def finished(path: Path) -> None:
    """A whole log of 30 steps."""
    write_run(path, 30, state=state, segment_bytes=1)


def add(store: LogStore, start: int, stop: int) -> None:
    for t in range(start, stop):
        layout = Layout.of(state(t))
        flat = layout.empty()
        layout.pack(state(t), flat)
        store.add(make_step(t), layout, flat, store=True)


def record(codec: str, *, durable: bool) -> Callable[[Path, Callable[[int], None]], None]:
    def action(path: Path, tell: Callable[[int], None]) -> None:
        store = LogStore(
            WritableDirectory(path, present="refuse"), header=make_header(), codec=CodecChoice(codec),
            flush_every=1000, segment_bytes=1, durable=durable,
        )  # fmt: skip
        go_on(store, 0, 40, tell, durable=durable)

    return action


def resume(start: int, stop: int) -> Callable[[Path, Callable[[int], None]], None]:
    def action(path: Path, tell: Callable[[int], None]) -> None:
        tell(start)  # what comes after is to be dropped
        directory = WritableDirectory(path, present="keep")
        store = LogStore(
            directory, header=make_header(), codec=CodecChoice("delta"), flush_every=1000, segment_bytes=1,
            durable=True, sealed=cut(directory, make_header().run_id, start),
        )  # fmt: skip
        go_on(store, start, stop, tell, durable=True)

    return action


def go_on(store: LogStore, start: int, stop: int, tell: Callable[[int], None], *, durable: bool) -> None:
    for t in range(start, stop):
        sealed = len(store._sealed)
        add(store, t, t + 1)
        if durable and t % 5 == 4:
            store.flush()
            tell(t + 1)
        elif not durable and len(store._sealed) > sealed:
            tell(t)
    layout = Layout.of(state(stop))
    flat = layout.empty()
    layout.pack(state(stop), flat)
    store.finish(layout, flat, average=None, reason="completed")
    tell(stop)


def mend(path: Path, tell: Callable[[int], None]) -> None:
    tell(30)
    recover(path)


STORIES = (
    Story("record, delta", nothing, record("delta", durable=True)),
    Story("record, auto", nothing, record("auto", durable=True)),
    Story("record, not durable", nothing, record("delta", durable=False)),
    Story("recover", left_over, mend),
    Story("resume a killed run at its end", left_over, resume(30, 45)),
    Story("resume a killed run earlier", left_over, resume(11, 30)),
    Story("resume a finished run", finished, resume(30, 45)),
    Story("resume a finished run earlier", finished, resume(20, 34)),
)


def prefixes(share: float, rng: np.random.Generator, place: Path) -> list[Tally]:
    """Every prefix of the calls of each story: killed, torn, and without power."""
    tallies = [
        Tally("process dies at any call"), Tally("and the call is torn at a page"), Tally("power fails at any call"),
    ]  # fmt: skip
    for number, story in enumerate(STORIES):
        origin = place / f"story-{number}"
        origin.mkdir()
        story.prepare(origin / "run")
        start = Disk(origin)
        try:
            calls = changes(origin, lambda tell, s=story, o=origin: s.action(o / "run", lambda n: tell(b"%d" % n)))
        except NotPermitted as error:
            for tally in tallies:
                tally.remark = str(error)
            return tallies
        disk = Disk()
        disk.files = {name: bytearray(data) for name, data in start.files.items()}
        for call in calls:
            disk.apply(call)
        there = {str(p.relative_to(origin)): p.read_bytes() for p in origin.rglob("*") if p.is_file()}
        assert {name: bytes(data) for name, data in disk.files.items()} == there, "the tracer has missed something"
        for tally, judge in zip(tallies, (killed_at, torn_at, unpowered_at), strict=True):
            judge(tally, story, start, calls, share, rng, place / "crashed")
    return tallies


def killed_at(
    tally: Tally, story: Story, start: Disk, calls: list[Call], share: float, rng: np.random.Generator, place: Path
) -> None:
    disk = start.copy()
    for number, call in enumerate((Call("told"), *calls)):
        disk.apply(call)
        if call.kind != "told" and rng.random() < share:
            judge_crash(tally, f"{story.name}, call {number}", disk, promised(start, calls[:number]), place, rng)


def torn_at(
    tally: Tally, story: Story, start: Disk, calls: list[Call], share: float, rng: np.random.Generator, place: Path
) -> None:
    disk = start.copy()
    for number, call in enumerate(calls):
        for part in torn(call):
            if rng.random() < share:
                cut_disk = disk.copy()
                cut_disk.apply(part)
                judge_crash(
                    tally, f"{story.name}, call {number} torn", cut_disk, promised(start, calls[:number]), place, rng
                )
        disk.apply(call)


def unpowered_at(
    tally: Tally, story: Story, start: Disk, calls: list[Call], share: float, rng: np.random.Generator, place: Path
) -> None:
    if not story.power:
        return
    for number in range(1, len(calls) + 1):
        if rng.random() < share:
            disk = without_power(start, calls[:number], rng)
            judge_crash(
                tally, f"{story.name}, no power after call {number}", disk, promised(start, calls[:number]), place, rng
            )


def promised(start: Disk, calls: list[Call]) -> int:
    """Steps that are safe by what was told."""
    told = [int(call.data) for call in calls if call.kind == "told" and call.data]
    if told:
        return told[-1]
    return 30 if start.files else 0


def judge_crash(tally: Tally, what: str, disk: Disk, flushed: int, place: Path, rng: np.random.Generator) -> None:
    tally.faults += 1
    disk.store(place)
    try:
        steps = assert_right(place / "run", flushed)
        if steps and rng.random() < 0.25:
            recover(place / "run")
            assert_right(place / "run", steps)
            assert not recover(place / "run").changed, "a second recovery had something to do"
    except (AssertionError, LogError) as error:
        tally.lost.append(f"{what}: {error}")
