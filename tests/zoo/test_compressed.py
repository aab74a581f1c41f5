from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.compressed import existing, read_whole

DATA = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
KINDS = [(gzip.compress, "gzip"), (lzma.compress, "xz")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_reads_what_was_packed(tmp_path: Path, pack) -> None:
    file = tmp_path / "file"
    for data in (DATA, b"", DATA[:10]):
        file.write_bytes(pack(data))
        assert read_whole(file) == data


@pytest.mark.parametrize(("pack", "kind"), KINDS)
def test_several_streams_and_padding(tmp_path: Path, pack, kind: str) -> None:
    file = tmp_path / kind
    file.write_bytes(pack(DATA[:1000]) + pack(DATA[1000:]) + bytes(8))
    assert read_whole(file) == DATA


@pytest.mark.parametrize(("pack", "kind"), KINDS)
def test_damage_is_refused_with_the_place(tmp_path: Path, pack, kind: str) -> None:
    file, packed = tmp_path / kind, pack(DATA)
    file.write_bytes(packed[:-100])
    with pytest.raises(
        ConfigurationError, match=rf"{kind}, byte {len(packed) - 100:,}: the file ends within its {kind} data"
    ):
        read_whole(file)
    for broken in (packed[:200_000] + b"\xff" * 40_000 + packed[240_000:], packed + b"more than there should be"):
        file.write_bytes(broken)
        with pytest.raises(ConfigurationError, match=rf"{kind}, byte [\d,]+: broken {kind} data from here on"):
            read_whole(file)


@pytest.mark.parametrize(
    ("name", "says"), [("a.xz", "expected xz data, .*fd 37"), ("a.gz", "expected gzip data, .*1f 8b")]
)
def test_another_kind_than_the_name_says(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(ConfigurationError, match=rf"{name}, byte 0: {says}.*got 3c 68 74 6d 6c 3e"):
        read_whole(tmp_path / name)


def test_the_plain_file_comes_first(tmp_path: Path) -> None:
    assert existing(tmp_path / "x.bin") is None
    (tmp_path / "x.bin.xz").touch()
    assert existing(tmp_path / "x.bin") == tmp_path / "x.bin.xz"
    (tmp_path / "x.bin").touch()
    assert existing(tmp_path / "x.bin") == tmp_path / "x.bin"
