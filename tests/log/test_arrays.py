"""Arrays and attributes of results."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lightning_sgdinf.errors import ConfigurationError, LogCorruptError, LogError, LogNotFoundError, LogVersionError
from lightning_sgdinf.log.arrays import read_arrays, write_arrays

KIND = "sgdinf-test/1"
ARRAYS = {
    "values": np.arange(6.0).reshape(2, 3),
    "ids": np.array([3, -1], np.int64),
    "größe": np.array(2.5, np.float32),
    "mask": np.array([True, False]),
    "none": np.empty((0, 4)),
    "nan": np.array([np.nan, -0.0, np.inf]),
}
ATTRIBUTES = {"queries": ["a", "ü"], "loss": float("nan"), "nested": {"x": [1, None, True, 1e-300]}}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "scores.h5"
    for _ in range(2):  # the second replaces the first
        write_arrays(path, ARRAYS, ATTRIBUTES, kind=KIND)
    arrays, attributes = read_arrays(path, kind=KIND)
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()
    assert repr(attributes["loss"]) == "nan"
    assert {n: v for n, v in attributes.items() if n != "loss"} == {n: v for n, v in ATTRIBUTES.items() if n != "loss"}
    assert [p.name for p in tmp_path.iterdir()] == ["scores.h5"]


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "scores.h5"
    with pytest.raises(LogNotFoundError):
        read_arrays(path, kind=KIND)
    for arrays, attributes in (
        ({"a/b": np.zeros(1)}, {}),
        ({"a": np.array(["text"])}, {}),
        ({}, {"a": object()}),
    ):
        with pytest.raises(ConfigurationError):
            write_arrays(path, arrays, attributes, kind=KIND)  # type: ignore[arg-type]
    assert not path.exists()
    with pytest.raises(LogError, match="make its directory"):
        write_arrays(tmp_path / "missing" / "a.h5", {}, {}, kind=KIND)
    write_arrays(path, ARRAYS, ATTRIBUTES, kind=KIND)
    with pytest.raises(LogVersionError, match="sgdinf-test/1"):
        read_arrays(path, kind="sgdinf-test/2")
    path.write_bytes(b"no HDF5")
    with pytest.raises(LogCorruptError):
        read_arrays(path, kind=KIND)


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "scores.h5"
    write_arrays(path, ARRAYS, ATTRIBUTES, kind=KIND)
    with h5py.File(path, "r") as file:
        places = [file[name].id.get_offset() for name in ("attributes", "arrays/values", "arrays/mask", "arrays/größe")]
    whole = path.read_bytes()
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(LogCorruptError):
            read_arrays(path, kind=KIND)
