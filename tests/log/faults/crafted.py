"""Logs and scores files as an attacker makes them, who knows the format: right checksums, and everything else wrong.

Each is read with all that can be asked of it, and every fourth log is mended, too. What comes of it is a result or an
error with a name, within 2 s of processor time and 256 MB.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.log.cases import make_state, write_run
from tests.log.faults.tally import PATIENCE, Tally, in_child

SECONDS, MEGABYTES, BATCH = 2.0, 256, 400
CODECS = ("none", "delta", "small", "delta2")
Rng = np.random.Generator


# What is made ------------------------------------------------------------------------------------------------------


def make_originals(place: Path) -> None:
    """A log of every codec, one with batches, what a killed writer left, and scores."""
    import torch

    from lightning_sgdinf.scores import Scores
    from tests.log.test_batches import with_batches

    def state(t: int) -> Any:
        return make_state(t, size=1200)

    for codec in CODECS:
        write_run(place / codec, 6, state=state, codec=codec)
    write_run(place / "batches", 4, state=state, step=with_batches)
    writer = write_run(place / "writing", 5, state=state, finish=False)
    shutil.copytree(place / "writing", place / "left")
    writer.abandon("")
    shutil.rmtree(place / "writing")
    (place / "scores").mkdir()
    values = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)
    Scores(values=values, queries=("a", "b"), labels=("x", "y", "z", "x")).save(place / "scores" / "scores.h5")


# What is done to it ------------------------------------------------------------------------------------------------

TEXTS = (
    "",
    "../../etc/passwd",
    "\x1b[2J",
    "\u202egnp",
    "\ud800",
    "=1+1",
    "<script>",
    "x" * 70_000,
    "os.system",
    "nan",
    "٣",
)
NUMBERS = (0, 1, -1, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 10**40, -(2**63), 1e308, 0.5)


def value(rng: Rng, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = rng.integers(10 if depth < 3 else 6)
    if kind < 2:
        return NUMBERS[rng.integers(len(NUMBERS))]
    if kind < 4:
        return TEXTS[rng.integers(len(TEXTS))]
    if kind < 6:
        return [None, True, False, {"$float": "nan"}, {"$float": "inf"}, {"$float": [1]}, {"$float": "1e999"}][
            rng.integers(7)
        ]
    if kind < 8:
        return [value(rng, depth + 1) for _ in range(rng.integers(4))]
    return {TEXTS[rng.integers(len(TEXTS))][:9]: value(rng, depth + 1) for _ in range(rng.integers(4))}


def changed(known: Any, rng: Rng) -> Any:
    """Another value at a random place of a document."""
    if isinstance(known, dict) and known and rng.random() < 0.9:
        name = sorted(known)[rng.integers(len(known))]
        if rng.random() < 0.1:
            return {k: v for k, v in known.items() if k != name}
        return known | {name: changed(known[name], rng)}
    if isinstance(known, list) and 0 < len(known) < 20_000 and rng.random() < 0.8:
        place = int(rng.integers(len(known)))
        if rng.random() < 0.15:
            return known[:place] + known[place:] * int(rng.choice([0, 2, 3000]))
        return [*known[:place], changed(known[place], rng), *known[place + 1 :]]
    if type(known) is int and rng.random() < 0.5:
        return known + int(rng.integers(-3, 4))
    return value(rng)


def documents_of(file: h5py.File) -> list[str]:
    return [n for n in ("header", "layout", "summary", "state/layout", "average/layout", "attributes") if n in file]


def store(file: h5py.File, name: str, data: bytes) -> None:
    del file[name]
    file[name] = np.frombuffer(data, np.uint8)
    file[name].attrs["crc32"] = np.uint32(zlib.crc32(data))


def spoil_document(file: h5py.File, rng: Rng) -> None:
    names = documents_of(file)
    name = names[rng.integers(len(names))]
    if file[name].nbytes > 10 << 20:
        return
    known = file[name][()].tobytes()
    if rng.random() < 0.85:
        made = json.dumps(changed(json.loads(known), rng)).encode()
    else:
        made = [
            b"", b"null", b"NaN", b'{"run_id":NaN}', b"[" * 200_000, b'{"a":' * 60_000, b'{"run_id":"a","run_id":5}',
            b'{"steps":' + b"9" * 5000 + b"}", known[:-1], known * 2, b"\xff\xfe" + known,
            b"[" + b"0," * 1_500_000 + b"0]",
            b'"' + b"\\ud800" * 1000 + b'"', rng.bytes(200),
        ][rng.integers(14)]  # fmt: skip
    store(file, name, made)


def spoil_object(file: h5py.File, rng: Rng, fifo: Path) -> None:
    names: list[str] = []
    file.visit(names.append)
    name = names[rng.integers(len(names))]
    kind = OBJECTS[rng.integers(len(OBJECTS))]
    if kind is not _attribute:
        del file[name]
    with suppress(ValueError, OSError, TypeError, RuntimeError):  # HDF5 does not make it
        kind(file, name, rng, fifo)


def _attribute(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    owner = file[name] if len(file[name].attrs) and rng.random() < 0.5 else file
    attributes = [*owner.attrs]
    if not attributes:
        return
    chosen = attributes[rng.integers(len(attributes))]
    given = [
        np.array([1, 2]), np.array(["a", "b"], dtype=h5py.string_dtype()), h5py.Empty("f"), 5, np.float64("nan"), -1,
        np.bytes_(b"sgdinf-log/1"), "sgdinf-log/" + "9" * 5000, "x" * 60_000, "\x1b[2J", np.zeros((50, 100), "u1"),
        np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")]), np.int64(2**62), np.uint64(2**64 - 1),
    ]  # fmt: skip
    owner.attrs[chosen] = given[rng.integers(len(given))]


def _other_type(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    dtype = [
        h5py.string_dtype(), np.dtype("f8"), np.dtype([("a", "i4")]), h5py.vlen_dtype("i4"), h5py.ref_dtype,
        np.dtype(">i8"),
        h5py.string_dtype("ascii", 5), h5py.enum_dtype({"a": 1}), np.dtype(("u1", (1000, 1000))),
        h5py.opaque_dtype("M8[s]"),
    ][rng.integers(10)]  # fmt: skip
    file.create_dataset(name, (int(rng.choice([0, 1, 5, 1200])),), dtype=dtype)


def _shape(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    shape = [(), (0,), (3, 0), (2, 2, 2), (1,) * 32, (5, 1200), None][rng.integers(7)]
    if shape is None:
        file[name] = h5py.Empty("u1")
    else:
        file.create_dataset(name, shape, dtype=["u1", "<u4", "<f4"][rng.integers(3)])


def _huge(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    rows = int(2 ** rng.uniform(10, 55))
    dtype, kind = ["u1", "<i8", "<u4", "<f4"][rng.integers(4)], rng.integers(5)
    if kind == 0:  # claimed, and late: there is nothing
        file.create_dataset(name, (rows,), dtype=dtype)
    elif kind == 1:
        file.create_dataset(name, (rows,), maxshape=(None,), dtype=dtype, chunks=(int(rng.choice([1, 1024, 1 << 20])),))
    elif kind == 2:
        file.create_dataset(name, (rows, 1200), maxshape=(None, 1200), dtype=dtype, chunks=(1, 1200))
    elif kind == 3:  # one chunk as large as HDF5 allows, of zeros
        file.create_dataset(name, (1 << 26,), dtype="u1", chunks=(1 << 26,), compression="gzip")[0] = 1
    else:  # one chunk of many is there, at the far end
        made = file.create_dataset(name, (rows,), maxshape=(None,), dtype="u1", chunks=(64,))
        made[rows - 1] = 1


def _link(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    kind = rng.integers(5)
    if kind == 0:
        file[name] = h5py.SoftLink(["/", f"/{name}", "/header", "nowhere"][rng.integers(4)])
    elif kind == 1:
        file[name] = h5py.ExternalLink(str(fifo), "/x")
    elif kind == 2:
        layout = h5py.VirtualLayout((4,), "u1")
        layout[...] = h5py.VirtualSource(str(fifo), "header", (4,))
        file.create_virtual_dataset(name, layout)
    elif kind == 3:
        file.create_dataset(name, (8,), dtype="u1", external=[(str(fifo), 0, 8)])
    else:
        file[name] = file["/"]


def _group(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    group = file.create_group(name)
    for _ in range(int(rng.choice([0, 1, 300]))):
        group = group.create_group("g")


def _filtered(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    import hdf5plugin

    options = [
        {"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}, {"compression": "lzf"},
        dict(hdf5plugin.Zstd()),
        dict(hdf5plugin.Blosc()), dict(hdf5plugin.BZip2()), {"scaleoffset": 3}, dict(hdf5plugin.LZ4()),
    ][rng.integers(9)]  # fmt: skip
    words = int(rng.choice([1200, 1 << 18, 1 << 22]))
    file.create_dataset(name, data=np.zeros((4, words), "<u4"), chunks=(1, words), **options)


def _gone(file: h5py.File, name: str, rng: Rng, fifo: Path) -> None:
    """It has been deleted."""


OBJECTS = (_attribute, _attribute, _other_type, _shape, _huge, _huge, _link, _link, _group, _filtered, _gone)


def spoil_pages(file: h5py.File, rng: Rng) -> None:
    if "page" not in file:
        return spoil_document(file, rng)
    ends = file["page_end"][()]
    kind = rng.integers(5)
    if kind == 0:  # other ends
        given = rng.integers(-5, 2**40, len(ends)) if rng.random() < 0.5 else ends[::-1].copy()
        file["page_end"][...] = given
        return None
    body = bytearray(zlib.decompress(file["page"][()].tobytes()[: int(ends[0])]))
    if kind == 1:  # a field of its head
        struct.pack_into(
            "<I", body, 4 * int(rng.integers(6)), int(rng.choice([0, 1, 7, 4096, 2**20, 2**31, 2**32 - 1]))
        )
    elif kind == 2:
        for _ in range(int(rng.integers(1, 8))):
            body[rng.integers(len(body))] = rng.integers(256)
    elif kind == 3:
        steps = int(2 ** rng.uniform(0, 25))
        body = bytearray(struct.pack("<6I", steps, 0, 0, 0, 0, 0) + bytes(steps * 29))
    else:
        body = body[: int(rng.integers(len(body)))]
    data = np.frombuffer(zlib.compress(bytes(body)), np.uint8)
    file["page"].resize(len(data), axis=0)
    file["page"][...] = data
    file["page_end"].resize(1, axis=0)
    file["page_end"][...] = [len(data)]
    return None


def spoil_chunk(file: h5py.File, rng: Rng) -> None:
    names = [n for n in ("state/float32", "batch") if n in file and file[n].chunks and file[n].id.get_num_chunks()]
    if not names or file.filename.endswith("end.h5"):
        return spoil_document(file, rng)
    stored = file[names[rng.integers(len(names))]].id
    offset = stored.get_chunk_info(int(rng.integers(stored.get_num_chunks()))).chunk_offset
    mask, data = stored.read_direct_chunk(offset)
    made, kind = bytearray(data), rng.integers(5)
    if kind == 0:
        struct.pack_into(
            "<I", made, 4 * int(rng.integers(4)), int(rng.choice([0, 1, 4800, 4801, 2**20, 2**31 - 1, 2**32 - 1]))
        )
    elif kind == 1:
        made = bytearray(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", int(2 ** rng.uniform(0, 60))) + data[9:])
    elif kind == 2:
        made[rng.integers(len(made))] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        made = made[: max(1, int(rng.integers(len(made))))]
    else:
        mask = int(rng.integers(4))
    stored.write_direct_chunk(offset, bytes(made), mask)
    return None


def spoil_directory(path: Path, rng: Rng, fifo: Path) -> None:
    files = sorted(p for p in path.iterdir() if p.is_file())
    file = files[rng.integers(len(files))]
    name = ["LOCK", "reserve", "end.h5", "seg-0000000000.h5", "seg-0000000003.h5", "live-0000000006.h5", "tmp-1", "x",
            "seg-9999999999.h5", "damaged-1-end.h5", "a\x1b[2J", file.name][rng.integers(12)]  # fmt: skip
    place, kind = path / name, rng.integers(9)
    if kind == 0:
        os.truncate(file, int(rng.choice([0, 1, 47, 48, 500, 1 << 30])))
        return
    content = file.read_bytes()
    with suppress(FileNotFoundError):
        place.unlink()
    if kind == 1:
        place.symlink_to(["/dev/zero", "/etc/passwd", str(place), str(fifo), ".."][rng.integers(5)])
    elif kind == 2:
        os.mkfifo(place)
    elif kind == 3:
        place.mkdir()
    elif kind in (4, 5):
        place.write_bytes(content)
    elif kind == 6:
        place.write_text('1@h\n{"steps": 1e400, "steps_per_second": [], "plain_bytes": null, "updated": 1}')
    elif kind == 7:
        place.write_bytes(b"\x89HDF\r\n\x1a\n" + content[8 : int(rng.integers(9, 200))])
    else:
        place.write_bytes(bytes(512) + content)


IMPOSSIBLE = (
    OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, MemoryError, zlib.error,
    struct.error,
)  # fmt: skip
"""What HDF5 says of a file that is spoilt too much to be spoilt more."""


def craft(path: Path, rng: Rng, fifo: Path) -> str:
    """Spoil a copy in one or more ways; says how."""
    said = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        files = sorted(p for p in path.glob("*.h5") if p.is_file() and not p.is_symlink())
        ways: list[Callable[..., object]] = [
            spoil_document,
            spoil_document,
            spoil_object,
            spoil_object,
            spoil_pages,
            spoil_chunk,
        ]
        way = ways[rng.integers(len(ways))] if files and rng.random() < 0.85 else spoil_directory
        said.append(way.__name__)
        if way is spoil_directory:
            with suppress(*IMPOSSIBLE):
                spoil_directory(path, rng, fifo)
            continue
        with suppress(*IMPOSSIBLE), opened(files[rng.integers(len(files))]) as file:
            way(file, rng, fifo) if way is spoil_object else way(file, rng)
    return ", ".join(said)


def opened(path: Path) -> h5py.File:
    """A file for changes, even of a killed writer."""
    from lightning_sgdinf.log.superblock import SIZE, repaired

    path.chmod(0o644)
    with path.open("r+b") as file:
        block, end = repaired(file.read(SIZE), path.stat().st_size)
        file.seek(0)
        file.write(block)
        file.truncate(end)
    return h5py.File(path, "r+", locking=False)


# How it is read ----------------------------------------------------------------------------------------------------


def read_everything(path: Path, mend: bool) -> None:
    """All that can be asked of a log, or of scores."""
    from lightning_sgdinf.errors import LogCorruptError
    from lightning_sgdinf.log import RunLog, recover
    from lightning_sgdinf.log.command import main
    from lightning_sgdinf.scores import Scores
    from tests.log.faults.victim import read_all

    if (path / "scores.h5").exists() or not (path / "LOCK").exists():
        scores = Scores.load(path / "scores.h5")
        scores.summary()
        scores.most_harmful(3, query=scores.queries[0])
        return
    read_all(RunLog, path)
    if main(["info", str(path)]) or main(["watch", "--once", str(path)]):
        raise LogCorruptError("said so")
    if mend:
        recover(path)
        read_all(RunLog, path)


@dataclass
class Meter:
    """Processor time and memory of what is done between `start` and `stop`."""

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._memory, self._time = self._status("VmRSS"), time.process_time()

    def stop(self) -> str:
        seconds, megabytes = time.process_time() - self._time, (self._status("VmHWM") - self._memory) / 1000
        return f"{seconds:.1f} s, {megabytes:.0f} MB" if seconds > SECONDS or megabytes > MEGABYTES else ""

    @staticmethod
    def _status(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name))


def crafted(count: int, rng: Rng, place: Path) -> Tally:
    """So many crafted logs and scores files."""
    tally, originals, report = Tally("crafted logs and scores"), place / "originals", place / "report"
    assert not in_child(lambda: make_originals(originals))
    seeds, number = rng.integers(2**32, size=count), 0
    while number < count:
        some = seeds[number : number + BATCH].tolist()
        status = in_child(lambda: read_many(some, originals, place, report))  # noqa: B023
        lines = report.read_text().splitlines() if report.exists() else []
        if status and len(lines) < len(some):
            lines.append(f"!seed {some[len(lines)]}: the child ended with {status}")
        tally.noticed += sum(line == "noticed" for line in lines)
        tally.harmless += sum(line == "right" for line in lines)
        tally.lost += [line[1:] for line in lines if line.startswith("!")]
        tally.faults += len(lines)
        number += len(lines)
    return tally


def read_many(seeds: list[int], originals: Path, place: Path, report: Path) -> None:
    from lightning_sgdinf.errors import SgdInfluenceError

    warnings.simplefilter("ignore")
    names, meter, run, fifo = sorted(p.name for p in originals.iterdir()), Meter(), place / "run", place / "fifo"
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    silent = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(silent, descriptor)
    with report.open("w") as file:
        for seed in seeds:
            signal.alarm(PATIENCE)
            rng = np.random.default_rng(seed)
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(originals / names[rng.integers(len(names))], run)
            fifo.unlink(missing_ok=True)
            said = craft(run, rng, fifo)
            os.mkfifo(fifo)  # who opens it waits for ever
            meter.start()
            try:
                read_everything(run, mend=bool(rng.integers(4) == 0))
                line = "right"
            except SgdInfluenceError:
                line = "noticed"
            except BaseException as error:
                own = [f for f in traceback.extract_tb(error.__traceback__) if "lightning_sgdinf" in f.filename]
                where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
                line = f"!seed {seed} ({said}): {type(error).__name__}: {str(error)[:150]!r} {where}"
            if cost := meter.stop():
                line = f"!seed {seed} ({said}): {cost}; {line}"
            file.write(line.replace("\n", " ") + "\n")
            file.flush()
