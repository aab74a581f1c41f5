"""Bytes that change, and files that are cut, missing, exchanged or of another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import LogError
from lightning_sgdinf.log.reader import RunLog
from lightning_sgdinf.state import ModelState
from tests.log.cases import described, make_header, make_state, overwrite, write_run
from tests.log.faults.prefixes import left_over
from tests.log.faults.tally import Tally, assert_right, bytes_of, in_child, step_text


def flips(count: int, rng: np.random.Generator, place: Path) -> list[Tally]:
    """Single bits and runs of bytes, anywhere in a finished log, and in that of a killed writer."""
    tallies = [Tally("changed bytes in a finished log"), Tally("changed bytes in what a killed writer left")]
    for tally, prepare in zip(tallies, (whole_logs, left_logs), strict=True):
        logs = prepare(place / tally.name.replace(" ", "-"))
        batch = 50
        for start in range(0, count, batch):
            seed = int(rng.integers(2**32))
            report = place / "tally.json"

            def action(logs: list[Path] = logs, seed: int = seed, report: Path = report, tally: Tally = tally) -> None:
                part = Tally(tally.name)
                flip_some(part, logs, min(batch, count - start), np.random.default_rng(seed))  # noqa: B023
                report.write_text(json.dumps(asdict(part)))

            report.unlink(missing_ok=True)
            if status := in_child(action):
                tally.faults += batch
                tally.lost.append(f"changes of seed {seed}: the child ended with {status}")
            else:
                part = Tally(**json.loads(report.read_text()))
                tally.faults += part.faults
                tally.noticed += part.noticed
                tally.harmless += part.harmless
                tally.lost += part.lost
    return tallies


def whole_logs(place: Path) -> list[Path]:
    for codec in ("none", "delta", "small", "delta2"):
        write_run(place / codec, 20, state=large_state, codec=codec, segment_bytes=1)
    return sorted(place.iterdir())


def left_logs(place: Path) -> list[Path]:
    place.mkdir()
    left_over(place / "left")
    return [place / "left"]


def large_state(t: int) -> ModelState:
    """Rows large enough to be compressed."""
    return make_state(t, size=1200, momentum=False)


def flip_some(tally: Tally, logs: list[Path], count: int, rng: np.random.Generator) -> None:
    for _ in range(count):
        path = logs[int(rng.integers(len(logs)))]
        parts = sorted(path.glob("*.h5"))
        part = parts[int(rng.integers(len(parts)))]
        whole = part.read_bytes()
        changed = bytearray(whole)
        offset = int(rng.integers(len(whole)))
        if rng.random() < 0.5:
            changed[offset] ^= 1 << int(rng.integers(8))
        else:
            length = int(rng.integers(1, 64))
            changed[offset : offset + length] = rng.bytes(len(changed[offset : offset + length]))
        overwrite(part, bytes(changed))
        tally.faults += 1
        try:
            if path.name == "left":
                assert_right(path, min(int(part.stem.split("-")[1]), 30))
                tally.harmless += 1
            else:
                read_whole(path)
                tally.harmless += 1
        except LogError:
            tally.noticed += 1
        except AssertionError as error:
            tally.lost.append(f"{path.name}/{part.name} at {offset}: {error}")
        finally:
            part.write_bytes(whole)


def read_whole(path: Path) -> None:
    with RunLog.open(path) as log:
        assert len(log) == 20, f"{len(log)} steps"
        for step in log.steps(20, 0):
            assert described(step) == step_text(step.index), f"step {step.index} is wrong"
        for index in range(20, -1, -1):
            assert bytes_of(log.state(index)) == bytes_of(large_state(index)), f"state {index} is wrong"
        assert log.average is not None
        assert log.average["w"].tolist() == [0.5, 0.5], "the average is wrong"


def files(share: float, rng: np.random.Generator, place: Path) -> Tally:
    """Files of a finished log cut, missing, exchanged, or of another run."""
    tally = Tally("files cut, missing, swapped, foreign")
    origin, other = place / "origin", place / "other"
    write_run(origin, 20, state=large_state, segment_bytes=1)
    write_run(other, 20, state=large_state, segment_bytes=1, header=make_header(run_id="0" * 16))
    names = sorted(p.name for p in origin.glob("*.h5"))
    for what, change in file_faults(names, other, rng):
        if rng.random() > share:
            continue
        path = place / "changed"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(origin, path)
        change(path)
        tally.faults += 1
        try:
            read_whole(path)
            tally.lost.append(f"{what}: not noticed")
        except LogError:
            tally.noticed += 1
        except AssertionError as error:
            if what == "end.h5 missing" and str(error) == "19 steps":
                tally.noticed += 1  # a log without an end, and said so
            else:
                tally.lost.append(f"{what}: {error}")
    return tally


def file_faults(
    names: list[str], other: Path, rng: np.random.Generator
) -> Iterator[tuple[str, Callable[[Path], object]]]:
    for name in names:
        size = (other / name).stat().st_size
        for cut in (0, 1, 48, *rng.integers(0, size, 20).tolist()):
            yield f"{name} cut to {cut}", lambda p, n=name, c=cut: (p / n).write_bytes((p / n).read_bytes()[:c])
        yield f"{name} missing", lambda p, n=name: (p / n).unlink()
        yield f"{name} of another run", lambda p, n=name: shutil.copy(other / n, p / n)
        for target in names:
            if target != name:
                yield f"{name} for {target}", lambda p, n=name, t=target: shutil.copy(p / n, p / t)
    stranger = "seg-0000000099.h5"
    yield "one segment more", lambda p: shutil.copy(p / names[-1], p / stranger)
    yield "a strange segment", lambda p: (p / stranger).write_bytes(b"hello")
