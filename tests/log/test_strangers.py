"""A log from somebody else: reading and mending it runs nothing, touches nothing, and takes no more than it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lightning_sgdinf.errors import LogCorruptError, LogError, LogExistsError, LogVersionError
from lightning_sgdinf.log import LogWriter, RunLog, recover
from lightning_sgdinf.log.command import main
from lightning_sgdinf.log.watch import progress
from lightning_sgdinf.plain_text import csv_cell, printable
from lightning_sgdinf.report import SafeHtml
from lightning_sgdinf.scores import Scores
from tests.log.cases import assert_same_state, make_header, make_state, write_run
from tests.log.test_fuzz import replace


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("origin") / "run"
    write_run(path, 20, segment_bytes=1)
    return path


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("keys")
    return path


@pytest.mark.parametrize("name", ["LOCK", "reserve", "tmp-x", "live-0000000020.h5", "end.h5", "seg-0000000001.h5"])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "directory link"])
def test_what_lies_elsewhere_is_not_touched(log: Path, precious: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    (log / name).unlink(missing_ok=True)
    if kind == "symlink":
        (log / name).symlink_to(precious)
    elif kind == "hard link":
        (log / name).hardlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(log / name)
    else:
        (log / name).symlink_to(folder)
    for act in (recover, lambda path: RunLog.open(path).close(), lambda path: main(["watch", "--once", str(path)])):
        with suppress(LogError):
            act(log)
    assert precious.read_text() == "keys"
    assert (folder / "file").read_text() == "x"


def documents() -> Iterator[tuple[str, str, object]]:
    for name, value in {
        "run_id": None, "extra": 5, "environment": [], "created": 1, "parameters": [["a", "xy", "float32"]],
        "datasets": [[[], {}]], "optimizer": [], "model": "\ud800",
    }.items():  # fmt: skip
        yield "header", name, value
    for name, value in {
        "steps": True, "reason": {}, "segments": [{"first": [], "steps": 1, "checksum": 0}],
    }.items():  # fmt: skip
        yield "summary", name, value
    yield "summary", "steps", -1
    yield "summary", "segments", [{"first": "../../x", "steps": 1, "checksum": 0}]


@pytest.mark.parametrize(("document", "name", "value"), list(documents()))
def test_documents_that_say_something_else(log: Path, document: str, name: str, value: object) -> None:
    with h5py.File(log / "end.h5", "r+") as file:
        content = json.loads(file[document][()].tobytes())
        content[name] = value
        replace(file, document, json.dumps(content).encode())
    with pytest.raises(LogCorruptError):
        RunLog.open(log)


@pytest.mark.parametrize(
    "entry",
    [
        ["param", "w", "", [4], "os.system"], ["param", "w", "", [4], ["float32"]], ["x", "w", "", [4], "float32"],
        ["param", "w", "", "ab", "float32"], ["param", [], "", [4], "float32"], ["param", "w", "", [2**62], "float32"],
        ["param", "w", "", [-1], "float32"], ["param", "w", "", [1 << 40], "float32"],
    ],
)  # fmt: skip
def test_layouts_that_no_state_has(log: Path, entry: list) -> None:
    with h5py.File(log / "seg-0000000000.h5", "r+") as file:
        replace(file, "layout", json.dumps([entry]).encode())
    with RunLog.open(log) as opened, pytest.raises(LogCorruptError):
        opened.state(3)


@pytest.mark.parametrize(
    "data", [b"[" * 500_000, b'{"a":' * 50_000, b"[0" + b",0" * 3_000_000 + b"]", b" " * (17 << 20)]
)
def test_documents_out_of_all_proportion(log: Path, data: bytes) -> None:
    with h5py.File(log / "end.h5", "r+") as file:
        replace(file, "summary", data)
    with pytest.raises(LogCorruptError):
        RunLog.open(log)


@pytest.mark.parametrize("steps", [100_000, 8_000_000])
def test_a_page_that_is_larger_than_any(log: Path, steps: int) -> None:
    body = struct.pack("<6I", steps, 0, 0, 0, 0, 0) + bytes(steps * 29)
    data = np.frombuffer(zlib.compress(body), np.uint8)
    (log / "end.h5").unlink()
    with h5py.File(log / "seg-0000000000.h5", "r+") as file:
        file["page"].resize(len(data), axis=0)
        file["page"][...] = data
        file["page_end"].resize(1, axis=0)
        file["page_end"][...] = [len(data)]
    with pytest.raises(LogCorruptError, match=r"page 0 cannot be read"):
        RunLog.open(log)


def test_an_attribute_of_another_form(log: Path) -> None:
    for value in (np.array(["a", "b"], dtype=h5py.string_dtype()), "sgdinf-log-end/" + "9" * 5000, np.array([1, 2])):
        with h5py.File(log / "end.h5", "r+") as file:
            file.attrs["format"] = value
        with pytest.raises(LogVersionError):
            RunLog.open(log)


def test_names_that_no_log_has(log: Path) -> None:
    acts = (RunLog.open, progress, recover, lambda path: LogWriter(path, header=make_header(), overwrite=True))
    for name in (f"seg-{chr(0x660) * 10}.h5", "seg-0000000001.h5\n", "live-1.h5", "notes.txt", "END.h5", "a\x1b[2J"):
        (log / name).touch()
        for act in acts:
            with pytest.raises(LogError, match="which no log has") as told:
                act(log)
            assert "\x1b" not in str(told.value)
        (log / name).unlink()
    (log / ".nfs0001").touch()  # as file systems and desktops leave them
    RunLog.open(log).close()


@pytest.mark.parametrize("name", ["LOCK", "reserve", "end.h5", "seg-0000000000.h5", "tmp-1", "damaged-1-end.h5", "x"])
def test_what_is_no_file(log: Path, tmp_path: Path, name: str) -> None:
    def make_socket(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
            server.bind(path.name)

    for make in (Path.mkdir, os.mkfifo, make_socket, lambda path: path.symlink_to("/dev/zero")):
        path = Path(shutil.copytree(log, tmp_path / "copy"))
        (path / name).unlink(missing_ok=True)
        make(path / name)
        for act in (RunLog.open, recover, progress, lambda p: LogWriter(p, header=make_header(), overwrite=True)):
            with pytest.raises(LogError, match=r"which no log has|holds no segments"):
                act(path)
        shutil.rmtree(path)


def test_a_link_to_a_log_is_read_and_not_written(log: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(log)
    with RunLog.open(tmp_path / "latest") as opened:
        assert len(opened) == 20
    with pytest.raises(LogExistsError, match=f"is a link to {log}"):
        LogWriter(tmp_path / "latest", header=make_header(), overwrite=True)
    with RunLog.open(log) as opened:
        assert len(opened) == 20


def test_what_is_shown_cannot_steer_a_terminal_or_a_spreadsheet() -> None:
    assert printable("a\x1b[2J\x9b\u202e\ud800\nü") == "a\\x1b[2J\\x9b\\u202e\\ud800\nü"
    assert [csv_cell(v) for v in ("=1+1", "@x", "-2", "-2+3", "+1", -2, "x=1", "")] == [
        "'=1+1", "'@x", "-2", "'-2+3", "+1", -2, "x=1", "",
    ]  # fmt: skip
    shown = SafeHtml("<METa http-equiv=refresh content='0;url=x'><metadata><base href=x><b>ü</b>").html
    assert shown == "&lt;METa http-equiv=refresh content='0;url=x'><metadata>&lt;base href=x><b>ü</b>"


def test_scores_with_hostile_labels_are_written_as_text(tmp_path: Path) -> None:
    scores = Scores(values=torch.zeros(3, 1), queries=("q",), labels=("=cmd|x", "\ud800", "1"))
    scores.to_csv(tmp_path / "s.csv")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert "'=cmd|x" in lines[1]
    assert "?" in lines[2]


def test_scores_are_read_from_files_of_scores_only(log: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "scores.h5"
    Scores(values=torch.zeros(3, 1), queries=("q",)).save(path)
    for other in (log, log / "end.h5", tmp_path / "model.pt", tmp_path / "fifo", tmp_path / "none"):
        with pytest.raises(LogError):
            Scores.load(other)
    for name, value in {"queries": 5, "better": ["up"], "certificate": 3, "provenance": None}.items():
        with h5py.File(path, "r+") as file:
            known = file["attributes"][()].tobytes()
            replace(file, "attributes", json.dumps(json.loads(known) | {name: value}).encode())
        with pytest.raises(LogCorruptError, match="no scores"):
            Scores.load(path)
        with h5py.File(path, "r+") as file:
            replace(file, "attributes", known)
    assert len(Scores.load(path)) == 3


def test_several_threads_read_one_log(log: Path) -> None:
    wrong: list[object] = []
    with RunLog.open(log) as opened:

        def read(first: int) -> None:
            try:
                for index in range(first, 20, 3):
                    assert_same_state(opened.state(index), make_state(index))
                    assert opened.step(index).index == index
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_recovery_keeps_what_is_whole_of_a_spoilt_last_segment(log: Path) -> None:
    last = max(log.glob("seg-*"))
    first = int(last.stem.split("-")[1])
    with h5py.File(last, "r+") as file:  # a row that was never written, as after a failed write
        file["state/float32"][1] = 0
    with RunLog.open(log) as opened:
        assert not opened.verify().ok
    report = recover(log)
    assert report.changed
    assert {p.name for p in report.set_aside} == {"damaged-1-end.h5", f"damaged-1-{last.name}"}
    with RunLog.open(log) as opened:
        assert first <= len(opened) < 20
        assert opened.verify().ok
        assert_same_state(opened.state(len(opened)), make_state(len(opened)))
    assert not recover(log).changed
