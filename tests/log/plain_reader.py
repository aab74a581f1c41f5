"""A reader written from docs/format/log-v1.md alone: h5py, numpy, zlib, and nothing of the package."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  the filters of the codecs
import numpy as np

WORDS = {
    "float64": ("<f8", 1),
    "float32": ("<f4", 1),
    "float16": ("<f2", 1),
    "bfloat16": ("<u2", 1),
    "int64": ("<i8", 1),
    "int32": ("<i4", 1),
    "int16": ("<i2", 1),
    "int8": ("<i1", 1),
    "uint64": ("<u8", 1),
    "uint32": ("<u4", 1),
    "uint16": ("<u2", 1),
    "uint8": ("<u1", 1),
    "float8_e4m3fn": ("<u1", 1),
    "float8_e5m2": ("<u1", 1),
    "bool": ("<u1", 1),
    "complex64": ("<f4", 2),
    "complex128": ("<f8", 2),
}

ORDERS = {"none": 0, "delta": 1, "small": 1, "delta2": 2}


def document(file: h5py.File, name: str) -> Any:
    data = file[name][()].tobytes()
    assert zlib.crc32(data) == file[name].attrs["crc32"]
    return json.loads(data)


# Steps -----------------------------------------------------------------------------------------------------------


def twist(words: list[int]) -> list[int]:
    x = list(words)
    for i in range(624):
        y = (x[i] & 0x80000000) | (x[(i + 1) % 624] & 0x7FFFFFFF)
        x[i] = x[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
    return x


def generator_state(kind: int, stored: bytes, strings: list[bytes]) -> bytes:
    base, twists = struct.unpack("<II", stored[:8])
    rest, before = stored[8:], strings[base]
    if kind == 1:
        words = list(struct.unpack("<624Q", before[24 : 24 + 8 * 624]))
    else:
        words = list(struct.unpack("<624I", before[: 4 * 624]))
    for _ in range(twists):
        words = twist(words)
    if kind == 1:
        return rest[:24] + struct.pack("<624Q", *words) + rest[24:]
    return struct.pack("<624I", *words) + rest


def pages(file: h5py.File) -> Iterator[dict[str, Any]]:
    """The steps of a segment."""
    strings: list[bytes] = []
    start = 0
    for end in file["page_end"][()]:
        page = zlib.decompress(file["page"][start:end].tobytes())
        place, start = 0, end

        def take(form: str, page: bytes = page) -> tuple[Any, ...]:
            nonlocal place
            fields = struct.unpack_from("<" + form, page, place)
            place += struct.calcsize("<" + form)
            return fields

        n, i, w, d, r, b = take("6I")
        columns = [take(f"{n}B"), *(take(f"{n}I") for _ in range(5)), take(f"{n}Q")]
        used, kinds, sizes = list(take(f"{r}I")), take(f"{b}B"), take(f"{b}I")
        planes = [take(f"{i}B") for _ in range(w)]
        documents = take(f"{d}s")[0]
        for kind, size in zip(kinds, sizes, strict=True):
            stored = take(f"{size}s")[0]
            strings.append(stored if kind == 0 else generator_state(kind, stored, strings))
        assert place == len(page)
        ids = [int.from_bytes(bytes(p[j] for p in planes).ljust(8, b"\0"), "little", signed=True) for j in range(i)]
        for stored, state_crc, crc, id_count, size, count, batch_end in zip(*columns, strict=True):
            step = {"stored": stored, "state_crc": state_crc, "crc": crc, "batch_end": batch_end}
            step["ids"], ids = ids[:id_count], ids[id_count:]
            step["text"], documents = documents[:size], documents[size:]
            step["blobs"], used = [strings[number] for number in used[:count]], used[count:]
            yield step


def step_crc(t: int, step: dict[str, Any]) -> int:
    parts = [t.to_bytes(8, "little"), bytes([step["stored"]]), np.array(step["ids"], "<i8").tobytes(), step["text"]]
    parts += [zlib.crc32(blob).to_bytes(4, "little") for blob in step["blobs"]]
    return zlib.crc32(b"".join([*parts, step["state_crc"].to_bytes(4, "little")]))


def plain_documents(file: h5py.File) -> list[tuple[dict[str, Any], int]]:
    """Per step its document, and where its batches end."""
    return [(json.loads(step["text"]), step["batch_end"]) for step in pages(file)]


# States ----------------------------------------------------------------------------------------------------------


def tensors(layout: list, flat: dict[str, bytes]) -> dict[tuple[str, str, str], bytes]:
    """Bytes of each tensor, by part, name and key."""
    offsets = dict.fromkeys(flat, 0)
    values = {}
    for part, name, key, shape, dtype in layout:
        word, per_element = WORDS[dtype]
        size = int(np.prod(shape, dtype=int)) * per_element * np.dtype(word).itemsize
        start = offsets.get(dtype, 0)
        values[part, name, key] = flat.get(dtype, b"")[start : start + size]
        offsets[dtype] = start + size
    return values


def checksum(layout: list, values: dict[tuple[str, str, str], bytes]) -> int:
    crc = zlib.crc32(json.dumps(sorted(layout), separators=(",", ":"), ensure_ascii=True).encode())
    for place in sorted(values):
        crc = zlib.crc32(values[place], crc)
    return crc


def unzigzag(row: np.ndarray) -> np.ndarray:
    return (row >> 1) ^ (~(row & 1) + 1).astype(row.dtype)


def states_of(file: h5py.File, count: int, *, sealed: bool = True) -> list[dict[str, bytes]]:
    """Flat buffers of each stored state of a segment: from the first anchors, compared with those from the last."""
    order = ORDERS[file.attrs["codec"]]
    states: list[dict[str, bytes]] = [{} for _ in range(count)]
    for dtype in file["state"]:
        rows = file[f"state/{dtype}"][()]
        if order == 0:
            patterns = list(rows)
        elif count <= order:
            patterns = list(file[f"anchor/{dtype}"][:count])
        else:
            anchors = list(file[f"anchor/{dtype}"][()].view(rows.dtype))
            first, last = anchors[:order], anchors[order:]
            for j in range(count - order):
                r = unzigzag(rows[j])
                first.append(first[j] - r if order == 1 else r - first[j] + 2 * first[j + 1])
            for j in range(count - order - 1, -1, -1) if sealed else ():
                r = unzigzag(rows[j])
                last.insert(0, last[0] + r if order == 1 else r + 2 * last[0] - last[1])
            assert not sealed or all(np.array_equal(a, b) for a, b in zip(first, last, strict=True))
            patterns = first
        for place, words in enumerate(patterns):
            states[place][dtype] = words.tobytes()
    return states


# Batches ---------------------------------------------------------------------------------------------------------


def batches(file: h5py.File, steps: list[dict[str, Any]]) -> list[list[Any]]:
    """The stored batches of each step of a segment."""
    data, chunk, start, batches = file["batch"], file["batch"].chunks[0], 0, []
    for step in steps:
        batches.append([])
        for size, crc in (d["batch"] for m in step["micro_batches"] for d in m["draws"] if "batch" in d):
            stored = data[start : start + size].tobytes()
            assert zlib.crc32(stored) == crc
            batches[-1].append(batch(stored))
            start += -(-size // chunk) * chunk
        assert start == step["batch_end"]
    return batches


def batch(stored: bytes) -> Any:
    """Tensors as arrays of words, named tuples as tuples."""
    length = int.from_bytes(stored[:4], "little")
    values = stored[-(-(4 + length) // 8) * 8 :]

    def value(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind in ("tensor", "array", "scalar"):
            name, shape, offset = content
            dtype, per_element = WORDS[name] if kind == "tensor" else (name, 1)
            words = np.frombuffer(values, dtype, int(np.prod(shape, dtype=int)) * per_element, offset)
            return words.reshape(shape if per_element == 1 else [*shape, per_element])
        if kind == "bytes":
            return values[content[1] : content[1] + content[0]]
        if kind == "list":
            return [value(v) for v in content]
        if kind in ("tuple", "namedtuple"):
            return tuple(value(v) for v in (content if kind == "tuple" else content[2]))
        assert kind in ("dict", "$float")
        return float(content) if kind == "$float" else {value(k): value(v) for k, v in content}

    return value(json.loads(stored[4 : 4 + length]))


# The whole -------------------------------------------------------------------------------------------------------


class PlainLog:
    """All of a finished log."""

    def __init__(self, path: Path) -> None:
        self.states: dict[int, dict[tuple[str, str, str], bytes]] = {}
        self.state_crcs: dict[int, int] = {}
        self.steps: list[dict[str, Any]] = []
        self.codecs: set[str] = set()
        crcs = b""
        with h5py.File(path / "end.h5") as end:
            assert end.attrs["format"] == "sgdinf-log-end/1"
            self.header, summary = document(end, "header"), document(end, "summary")
            for entry in summary["segments"]:
                with h5py.File(path / f"seg-{entry['first']:010d}.h5") as file:
                    crcs += self._read(file, entry)
            layout = document(end, "state/layout")
            flat = {d: end[f"state/{d}"][()].tobytes() for d in end["state"] if d != "layout"}
            self.states[summary["steps"]] = tensors(layout, flat)
            last = self.state_crcs[summary["steps"]] = int(end["state"].attrs["crc32"])
            assert checksum(layout, self.states[summary["steps"]]) == last
            self.average = {n: end["average/float32"][()].tolist() for _, n, *_ in document(end, "average/layout")}
        assert len(self.steps) == summary["steps"]
        content = (
            summary["run_id"].encode() + summary["steps"].to_bytes(8, "little") + crcs + last.to_bytes(4, "little")
        )
        self.digest = hashlib.sha256(content).hexdigest()

    def _read(self, file: h5py.File, entry: dict[str, int]) -> bytes:
        assert file.attrs["format"] == "sgdinf-log/1"
        assert file.attrs["run_id"] == self.header["run_id"]
        assert document(file, "header") == self.header
        assert file.attrs["first_step"] == entry["first"] == len(self.steps)
        self.codecs.add(file.attrs["codec"])
        layout, stored, crcs = document(file, "layout"), [], b""
        for step in pages(file):
            t = len(self.steps)
            assert step_crc(t, step) == step["crc"]
            crcs += step["crc"].to_bytes(4, "little")
            self.state_crcs[t] = step["state_crc"]
            stored += [t] if step["stored"] else []
            self.steps.append({**step, "frame": json.loads(step["blobs"][0]), **json.loads(step["text"])})
        assert len(self.steps) == entry["first"] + entry["steps"]
        assert zlib.crc32(np.array(stored, "<i8").tobytes(), zlib.crc32(crcs)) == entry["checksum"]
        for index, flat in zip(stored, states_of(file, len(stored)), strict=True):
            self.states[index] = tensors(layout, flat)
            assert checksum(layout, self.states[index]) == self.state_crcs[index]
        return crcs


# What a killed writer left ---------------------------------------------------------------------------------------


def lookup3(data: bytes) -> int:
    """Of 44 bytes: three rounds of twelve, and eight more."""

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) & 0xFFFFFFFF

    state = [(0xDEADBEEF + len(data)) & 0xFFFFFFFF] * 3
    words = [*struct.unpack("<11I", data), 0]
    for start in range(0, 12, 3):
        state = [(x + w) & 0xFFFFFFFF for x, w in zip(state, words[start : start + 3], strict=True)]
        if start < 9:
            for place, by in enumerate((4, 6, 8, 16, 19, 4)):  # a, b, c in turn: a -= c, a ^= rot(c), c += b
                a, b, c = place % 3, (place + 1) % 3, (place + 2) % 3
                state[a] = (state[a] - state[c]) & 0xFFFFFFFF ^ rotated(state[c], by)
                state[c] = (state[c] + state[b]) & 0xFFFFFFFF
        else:
            for place, by in enumerate((14, 11, 25, 16, 4, 14, 24)):  # c, a, b in turn: c ^= b, c -= rot(b)
                c, b = (place + 2) % 3, (place + 1) % 3
                state[c] = ((state[c] ^ state[b]) - rotated(state[b], by)) & 0xFFFFFFFF
    return state[2]


def mended(path: Path) -> bytes:
    """The file of a killed writer as one that can be opened."""
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<I", data, 44)[0] == lookup3(bytes(data[:44]))
    data[11] = 0
    struct.pack_into("<Q", data, 28, len(data))
    struct.pack_into("<I", data, 44, lookup3(bytes(data[:44])))
    return bytes(data)


class PlainLeft:
    """All of the unsealed segment of a killed run, of which every step was flushed."""

    def __init__(self, path: Path) -> None:
        self.states: list[dict[tuple[str, str, str], bytes]] = []
        with h5py.File(io.BytesIO(mended(path))) as file:
            assert file.attrs["format"] == "sgdinf-log/1"
            first, layout = int(file.attrs["first_step"]), document(file, "layout")
            self.steps = [step | json.loads(step["text"]) for step in pages(file)]
            assert [step_crc(first + t, step) for t, step in enumerate(self.steps)] == [s["crc"] for s in self.steps]
            self.batches = batches(file, self.steps)
            stored = [step["state_crc"] for step in self.steps if step["stored"]]
            for flat, crc in zip(states_of(file, len(stored), sealed=False), stored, strict=True):
                self.states.append(tensors(layout, flat))
                assert checksum(layout, self.states[-1]) == crc
