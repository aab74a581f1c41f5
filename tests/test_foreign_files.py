"""Files that a stranger may have written, other than logs and scores: nothing in them is run, no file elsewhere is
touched, and what is none of ours is a named error, at a bounded cost."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sgdinf.atomic_write import locked, replace_bytes
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.foreign_files import read_arrays, read_document, read_tensors
from lightning_sgdinf.log import read_header
from lightning_sgdinf.record.resume import CHECKPOINT_KEY, NoLogError, bookmarks_of, find_continuation
from lightning_sgdinf.studies import summary
from lightning_sgdinf.studies.cache import load_or_compute, pin_settings, read_json, replace_json
from lightning_sgdinf.studies.merged import _pictures, collected
from lightning_sgdinf.studies.results import FILE, Measured, Point, RunResults

GOLDEN = Path(__file__).parent / "log" / "golden" / "v1" / "delta"


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def packed(names: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return content.getvalue()


def array(shape: tuple[int, ...], data: bytes = b"", kind: str = "|u1") -> bytes:
    """Return a ``.npy`` file that says it has so many numbers."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    return head.getvalue() + data


DOCUMENTS: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"format": 1, ',
    "bytes": b"\x93NUMPY\xff\xfe",
    "deep": b"[" * 300_000,
    "a list": b"[]",
    "a number": b"1" * 5000,
    "many lists": b"[" + b"[]," * 3_000_000 + b"[]]",
    "large": b'"' + b"x" * (17 << 20) + b'"',
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_that_are_none(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(DOCUMENTS[kind])
    with pytest.raises(ConfigurationError, match=r"results\.json: expected .*remove it"):
        read_document(file, dict)
    if kind != "a list":
        with pytest.raises(ConfigurationError):
            load_or_compute(file, dict)


@pytest.mark.parametrize("name", [summary.ROW, FILE])
@pytest.mark.parametrize("kind", ["pipe", "directory", "dangling link", "device", *DOCUMENTS])
def test_a_folder_of_results_with_one_that_is_none(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    summary.write_row(tmp_path / "1", {"seed": 1, "result": 0.5})
    bad = tmp_path / "0" / name
    bad.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(bad)
    elif kind == "directory":
        bad.mkdir()
    elif kind == "dangling link":
        bad.symlink_to(tmp_path / "nowhere")
    elif kind == "device":
        bad.symlink_to("/dev/zero")
    else:
        bad.write_bytes(DOCUMENTS[kind])
    assert [row["result"] for row in summary.rows(tmp_path)] == [0.5]
    assert collected([tmp_path]) == {}


RESULTS = RunResults(
    cell="digits", seed=0, points=(Point(method="", mode="last", count=0, measured=Measured(test_error=0.1)),)
)
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an error that is text": lambda r: r["points"][0]["measured"].update(test_error="a"),
    "an error that is infinite": lambda r: r["points"][0]["measured"].update(test_error=float("inf")),
    "an error beyond any float": lambda r: r["points"][0]["measured"].update(test_error=10**400),
    "no error": lambda r: r["points"][0]["measured"].update(test_error=None),
    "a count below 0": lambda r: r["points"][0].update(count=-1),
    "a count that is a list": lambda r: r["points"][0].update(count=[]),
    "a method that is a number": lambda r: r["points"][0].update(method=3),
    "a mode that is a dict": lambda r: r["points"][0].update(mode={}),
    "a seed that is text": lambda r: r.update(seed="0"),
    "a cell that is a list": lambda r: r.update(cell=[1]),
    "settings that are a list": lambda r: r.update(settings=[1]),
    "seconds that are text": lambda r: r.update(training={"seconds": "x"}),
    "ids that are text": lambda r: r.update(found={"a": "xyz"}),
    "another member": lambda r: r.update(other=1),
    "too many modes": lambda r: r.update(points=[{**r["points"][0], "mode": str(i)} for i in range(3000)]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_results_whose_members_are_others(change: str, tmp_path: Path) -> None:
    RESULTS.save(tmp_path)
    assert RunResults.load(tmp_path / FILE).points == RESULTS.points
    about = json.loads((tmp_path / FILE).read_text())
    CHANGES[change](about)
    (tmp_path / FILE).write_text(json.dumps(about))
    with pytest.raises(ConfigurationError, match="expected results of a run"):
        RunResults.load(tmp_path / FILE)


ARCHIVES: dict[str, bytes] = {
    "none": b"PK",
    "a bomb": packed({"ids.npy": array((1 << 30,), bytes(33 << 20))}),
    "says more than it has": packed({"ids.npy": array((1 << 45,))}),
    "objects": packed({"ids.npy": array((1,), pickle.dumps([1]), "|O")}),
    "a number for an array": packed({"ids.npy": b"7"}),
    "one array": array((3,), b"abc"),
    "no bytes": packed({}),
    "many": packed({f"{i}.npy": b"" for i in range(1001)}),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_hold_no_pictures(kind: str, tmp_path: Path) -> None:
    """Neither what is packed nor what is declared makes room for itself; and the page is made without."""
    file = tmp_path / "found.npz"
    file.write_bytes(ARCHIVES[kind])
    if kind != "no bytes":
        with pytest.raises(ConfigurationError, match="an archive of arrays"):
            read_arrays(file)
    assert _pictures(file, {"random": (1,)}) == {}


def test_nothing_in_a_file_of_tensors_is_run(tmp_path: Path) -> None:
    file, trace = tmp_path / "state.pt", tmp_path / "ran"
    torch.save({"params": Bomb(trace)}, file)
    with pytest.raises(ConfigurationError, match=r"holds posix\.mkdir.*loading it runs code.*add_safe_globals"):
        read_tensors(file)
    file.write_bytes(pickle.dumps(Bomb(trace)))  # the form of old releases
    with pytest.raises(ConfigurationError, match="expected tensors"):
        read_tensors(file)
    assert not trace.exists()


def test_files_that_hold_no_tensors_or_pretend_to_hold_many(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    torch.save({"w": torch.zeros(1 << 20)}, file)
    assert read_tensors(file)["w"].shape == (1 << 20,)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for content in (packed(members), b"", b"PK\x05\x06" + bytes(18), file.read_bytes()[:5000]):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match="expected tensors"):
            read_tensors(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigurationError, match="no regular file"):
        read_tensors(file)


DESCRIPTIONS: dict[str, bytes] = {
    "bytes": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (1 << 33).to_bytes(5, "little") + b"\x85R.",
    "lists": b"\x80\x02(" + b"]" * 1_000_000 + b"l.",
    "much": b"\x80\x02(" + b")" * 12_000_000 + b"l.",
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_descriptions_of_tensors_that_stand_for_gigabytes(kind: str, tmp_path: Path) -> None:
    """Readers of torch would make room for what they say, or take minutes."""
    file = tmp_path / "state.pt"
    torch.save({"w": torch.zeros(2)}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, DESCRIPTIONS[kind] if name.endswith("data.pkl") else data)
    with pytest.raises(ConfigurationError, match="expected tensors"):
        read_tensors(file)


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_lock_that_is_something_else_is_left_alone(kind: str, tmp_path: Path) -> None:
    precious, lock = tmp_path / "precious", tmp_path / ".settings.json.lock"
    precious.write_text("years of work")
    {"link": lambda: lock.symlink_to(precious), "pipe": lambda: os.mkfifo(lock), "directory": lock.mkdir}[kind]()
    with pytest.raises(OSError), locked(tmp_path / "settings.json"):  # noqa: PT011 - of the system
        pass
    assert precious.read_text() == "years of work"


def test_a_lock_that_is_a_file_keeps_its_content(tmp_path: Path) -> None:
    os.link(replace(tmp_path / "precious"), tmp_path / ".a.lock")
    with locked(tmp_path / "a"):
        pass
    assert (tmp_path / "precious").read_text() == "years of work"


def replace(path: Path) -> Path:
    replace_bytes(path, b"years of work")
    return path


def test_halves_of_characters_come_back_as_they_are(tmp_path: Path) -> None:
    value = {"\ud800 cat": "=1+1 \udfff"}
    replace_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    pin_settings(tmp_path / "b.json", value)
    pin_settings(tmp_path / "b.json", value)
    summary.write_row(tmp_path, value)
    summary.write_row(tmp_path, {"note": "=1+1 \ud800", "n": -1.5})
    assert "'=1+1 ?,-1.5" in summary.assemble(tmp_path).read_text()


BOOKMARK: dict[str, Any] = {"run_id": "a", "path": "/runs/a", "steps": 3, "last": [1, 2], "tensors": {"param w": 1}}
NO_BOOKMARKS: dict[str, Any] = {
    "a number": 7,
    "nothing": None,
    "a text": "abc",
    "entries that are none": [1, None, [], "x"],
    **{
        f"{name} {value!r:.20}": [{**BOOKMARK, name: value}]
        for name, value in (
            ("steps", -5), ("steps", 0), ("steps", True), ("steps", "3"), ("steps", 1 << 70), ("steps", 2.0),
            ("run_id", None), ("path", 3), ("last", 5), ("last", [1]), ("tensors", []), ("tensors", {1: 1}),
            ("numbered", -1), ("lost", None),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_BOOKMARKS)
def test_bookmarks_that_are_none_are_skipped(kind: str) -> None:
    assert bookmarks_of({CHECKPOINT_KEY: NO_BOOKMARKS[kind]}) == ()
    assert [b.steps for b in bookmarks_of({CHECKPOINT_KEY: [*([1] if kind else []), BOOKMARK]})] == [3]


@pytest.mark.parametrize("path", ["elsewhere/run.tlog", "here/../elsewhere/run.tlog", "link.tlog"])
def test_a_bookmark_opens_nothing_that_the_recorder_was_not_given(path: str, tmp_path: Path) -> None:
    """Its path is only told, without what would steer a terminal."""
    shutil.copytree(GOLDEN, tmp_path / "elsewhere" / "run.tlog")
    (tmp_path / "here").mkdir()
    (tmp_path / "link.tlog").symlink_to(tmp_path / "elsewhere" / "run.tlog")
    before = {p.name: p.read_bytes() for p in (tmp_path / "elsewhere" / "run.tlog").iterdir()}
    entry = {**BOOKMARK, "run_id": read_header(GOLDEN).run_id, "path": f"{tmp_path / path}\x1b[2J"}
    told: list[str] = []
    with pytest.raises(NoLogError, match=r"belongs to the log of run") as caught:
        find_continuation([tmp_path / "here" / "run.tlog"], bookmarks_of({CHECKPOINT_KEY: [entry]}), tell=told.append)
    assert "\x1b" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in (tmp_path / "elsewhere" / "run.tlog").iterdir()} == before
