"""Whatever is in the files: reading a log ends, in a result or in an error of its own, and does nothing else."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.log.cases import PRELUDE, make_state, make_step, put, write_run
from tests.log.faults.victim import Victim
from tests.log.test_batches import with_batches

EXAMPLES = int(os.environ.get("SGDINF_FUZZ_EXAMPLES", "15"))
ROUNDS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    process = Victim(PRELUDE)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished logs of every codec, one with batches, and what a killed writer left."""
    place = tmp_path_factory.mktemp("originals")

    def state(t: int):
        return make_state(t, size=600, momentum=False)

    for codec in ("none", "delta", "small", "delta2"):
        write_run(place / codec, 6, state=state, codec=codec)
    write_run(place / "batches", 4, step=with_batches)
    writer = write_run(place / "writing", 5, state=state, finish=False)
    shutil.copytree(place / "writing", place / "left")
    writer.abandon("")
    shutil.rmtree(place / "writing")
    next((place / "left").glob("live-*")).chmod(0o644)
    return place


NAMES = ("none", "delta", "small", "delta2", "batches", "left")


@pytest.fixture
def copy(originals: Path) -> Iterator[Path]:
    """Where a copy to be spoilt goes."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield place / "run"
    shutil.rmtree(place)


def fresh(originals: Path, copy: Path, name: str, part: int) -> Path:
    """One file of a fresh copy."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(originals / name, copy)
    parts = sorted(copy.glob("*.h5"))
    return parts[part % len(parts)]


edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut"]), st.floats(0, 1, exclude_max=True), st.binary(max_size=40)
    ),
    min_size=1,
    max_size=6,
)


@ROUNDS
@given(name=st.sampled_from(NAMES), part=st.integers(0, 3), changes=edits)
@example(name="delta", part=0, changes=[("cut", 0.0, b"")])
def test_bytes(victim: Victim, originals: Path, copy: Path, name: str, part: int, changes: list) -> None:
    file = fresh(originals, copy, name, part)
    data = bytearray(file.read_bytes())
    for kind, where, new in changes:
        place = int(where * len(data))
        if kind == "set":
            data[place : place + len(new)] = new
        elif kind == "insert":
            data[place:place] = new
        elif kind == "delete":
            del data[place : place + len(new)]
        else:
            del data[place:]
    file.write_bytes(data)
    victim.read(copy)


@ROUNDS
@given(
    name=st.sampled_from(("delta", "small", "delta2")),
    chunk=st.integers(0, 100),
    data=st.binary(min_size=1, max_size=300),
    where=st.floats(0, 1),
)
def test_compressed_chunks(
    victim: Victim, originals: Path, copy: Path, name: str, chunk: int, data: bytes, where: float
) -> None:
    """The decoders are given what no encoder made."""
    segment = fresh(originals, copy, name, 1)
    with h5py.File(segment, "r+") as file:
        rows = file["state/float32"].id
        info = rows.get_chunk_info(chunk % rows.get_num_chunks())
        _, old = rows.read_direct_chunk(info.chunk_offset)
        place = int(where * len(old))
        rows.write_direct_chunk(info.chunk_offset, old[:place] + data + old[place + len(data) :])
    assert victim.read(copy) in ("right", "LogCorruptError")


@ROUNDS
@given(name=st.sampled_from(("delta", "batches", "left")), content=st.binary(max_size=2000), squeeze=st.booleans())
def test_pages(victim: Victim, originals: Path, copy: Path, name: str, content: bytes, squeeze: bool) -> None:
    segment = fresh(originals, copy, name, 0 if name == "left" else 1)
    data = np.frombuffer(zlib.compress(content) if squeeze else content, np.uint8)
    with open_spoilt(segment) as file:
        file["page"].resize(len(data), axis=0)
        file["page"][...] = data
        file["page_end"].resize(1, axis=0)
        file["page_end"][...] = [len(data)]
    assert victim.read(copy) != "right"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@ROUNDS
@given(
    name=st.sampled_from(NAMES),
    part=st.integers(0, 3),
    document=st.integers(0, 9),
    value=json_values,
    deep=st.integers(0, 3),
)
def test_documents(
    victim: Victim, originals: Path, copy: Path, name: str, part: int, document: int, value: object, deep: int
) -> None:
    """Headers, layouts and summaries that say something else, with the right checksum."""
    file = fresh(originals, copy, name, part)
    with open_spoilt(file) as h5:
        names = [n for n in ("header", "layout", "summary", "state/layout", "average/layout") if n in h5]
        chosen = names[document % len(names)]
        known = json.loads(h5[chosen][()].tobytes())
        if deep and isinstance(known, dict):
            known[sorted(known)[deep % len(known)]] = value
        elif deep and isinstance(known, list):
            known[deep % len(known)] = value
        else:
            known = value
        replace(h5, chosen, json.dumps(known).encode())
    victim.read(copy)


def replace(file: h5py.File, name: str, data: bytes) -> None:
    del file[name]
    file[name] = np.frombuffer(data, np.uint8)
    file[name].attrs["crc32"] = np.uint32(zlib.crc32(data))


@ROUNDS
@given(
    name=st.sampled_from(NAMES),
    part=st.integers(0, 3),
    which=st.integers(0, 20),
    kind=st.sampled_from(
        ["type", "shape", "huge", "gone", "group", "soft", "external", "virtual", "storage", "filter", "attribute"]
    ),
    number=st.integers(0, 2**40),
)
def test_objects(
    victim: Victim, originals: Path, copy: Path, name: str, part: int, which: int, kind: str, number: int
) -> None:
    """Objects of HDF5 that are something else than they should be."""
    file = fresh(originals, copy, name, part)
    fifo = copy / "fifo"
    with open_spoilt(file) as h5:
        names: list[str] = []
        h5.visit(names.append)
        target = names[which % len(names)]
        if kind == "attribute":
            owner = h5[target] if len(h5[target].attrs) else h5
            owner.attrs[next(iter(owner.attrs))] = [number, "x", -1.5][number % 3]
        else:
            del h5[target]
            spoil(h5, target, kind, number, fifo)
    if kind in ("external", "storage", "virtual"):
        os.mkfifo(fifo)  # who opens it waits for ever
    victim.read(copy)


def spoil(file: h5py.File, name: str, kind: str, number: int, elsewhere: Path) -> None:
    if kind == "type":
        dtype = [h5py.string_dtype(), np.dtype("f8"), np.dtype([("a", "i4")]), h5py.vlen_dtype("i4")][number % 4]
        file.create_dataset(name, (3,), dtype=dtype)
    elif kind == "shape":
        file.create_dataset(name, (number % 7, number % 5, 2)[: 1 + number % 3], dtype="u1", chunks=None)
    elif kind == "huge":
        file.create_dataset(name, (number + 1,), maxshape=(None,), dtype="<i8", chunks=(1024,))
    elif kind == "group":
        file.create_group(name)
    elif kind == "soft":
        file[name] = h5py.SoftLink("/" if number % 2 else f"/{name}")
    elif kind == "external":
        file[name] = h5py.ExternalLink(str(elsewhere), "/header")
    elif kind == "virtual":
        layout = h5py.VirtualLayout((4,), "u1")
        layout[...] = h5py.VirtualSource(str(elsewhere), "header", (4,))
        file.create_virtual_dataset(name, layout)
    elif kind == "storage":
        file.create_dataset(name, (8,), dtype="u1", external=[(str(elsewhere), 0, 8)])
    elif kind == "filter":
        file.create_dataset(name, (4096,), dtype="u1", chunks=(4096,), compression="gzip", data=np.zeros(4096, "u1"))


class open_spoilt:
    """A file, opened for changes even if its writer was killed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> h5py.File:
        from lightning_sgdinf.log.superblock import SIZE, repaired

        with self._path.open("r+b") as file:
            block, end = repaired(file.read(SIZE), self._path.stat().st_size)
            file.seek(0)
            file.write(block)
            file.truncate(end)
        self._file = h5py.File(self._path, "r+", locking=False)
        return self._file

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.mark.parametrize("name", ["end.h5", "seg-0000000000.h5", "live-0000000006.h5", "LOCK", "seg-0000000009.h5"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling", "loop", "null"])
def test_what_is_no_file(victim: Victim, originals: Path, copy: Path, name: str, kind: str) -> None:
    fresh(originals, copy, "delta", 0)
    if name.startswith("live"):
        (copy / "end.h5").unlink()
    place = copy / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to({"dangling": copy / "nowhere", "loop": place, "null": Path("/dev/zero")}[kind])
    victim.read(copy)


def test_the_victim_notices(victim: Victim, originals: Path, copy: Path, tmp_path: Path) -> None:
    """The watch over the reader itself works."""
    fresh(originals, copy, "delta", 0)
    assert victim.read(copy) == "right"
    assert victim.read(tmp_path) == "LogNotFoundError"
    part = fresh(originals, copy, "delta", 1)
    part.write_bytes(part.read_bytes()[:1000])
    assert victim.read(copy) == "LogCorruptError"
    writer = write_run(tmp_path / "run", 3, finish=False)
    put(writer, make_state(3), make_step(3))
    assert victim.read(tmp_path / "run") == "LogNotFoundError"
    writer.abandon("")
