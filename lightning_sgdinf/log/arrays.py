"""A few named arrays and JSON attributes in one HDF5 file, for results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import ConfigurationError, LogCorruptError, LogWriteError
from lightning_sgdinf.log.directory import publish
from lightning_sgdinf.log.documents import from_json, to_json
from lightning_sgdinf.log.hdf5 import dataset, integer, new_file, open_file, read_document, reading, write_document
from lightning_sgdinf.log.records import Json

_KINDS = "biufc"


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Json],
    *,
    kind: str,
) -> None:
    """Write a file, replacing what is there only when the new one is complete.

    Args:
        path: File; its directory must exist.
        arrays: Numbers or booleans of any shape, by names without ``"/"``.
        attributes: Anything JSON can say, NaN and infinity included.
        kind: Of the file, and its version, e.g. ``"sgdinf-scores/1"``; `read_arrays` must be given the same.

    Raises:
        ConfigurationError: An array that is not of numbers, a name that cannot be used, or attributes JSON cannot say.
        LogWriteError: The file cannot be written.
    """
    path = Path(path)
    for name, array in arrays.items():
        if not name or "/" in name or name == ".":
            raise ConfigurationError(
                f"array name {name!r} cannot be used, expected one that is not empty and has no '/'"
            )
        if np.asarray(array).dtype.kind not in _KINDS:
            raise ConfigurationError(
                f"array {name!r} has dtype {np.asarray(array).dtype}, expected numbers or booleans"
            )
    try:
        document = to_json(dict(attributes))
    except TypeError as error:
        raise ConfigurationError(
            f"the attributes are not JSON: {error}; pass numbers, strings, lists and dicts"
        ) from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with new_file(temporary, kind) as file:
            write_document(file, "attributes", document)
            group = file.create_group("arrays", track_order=True)
            for name, array in arrays.items():
                _write(group, name, np.asarray(array))
        publish(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise LogWriteError(f"{path} cannot be written: {error}; make its directory, or free some space") from error


def read_arrays(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Json]]:
    """Read what `write_arrays` wrote, and check it.

    Args:
        path: File.
        kind: As it was written.

    Returns:
        The arrays, in the order in which they were written, and the attributes.

    Raises:
        LogNotFoundError: There is no such file.
        LogVersionError: It is of another kind or version.
        LogCorruptError: It differs from what was written.
    """
    path = Path(path)
    with open_file(Path(os.path.realpath(path)), kind) as file:
        document = read_document(file, "attributes", path)
        with reading(path, "attributes"):
            attributes = from_json(document)
            if not isinstance(attributes, dict):
                raise TypeError("the attributes are no object")
        with reading(path, "list of arrays"):
            group = file["arrays"]
            if not isinstance(file.get("arrays", getlink=True), h5py.HardLink) or not isinstance(group, h5py.Group):
                raise TypeError(f"{group} is there, expected a group")
            names = list(group)
        arrays, room = {}, file.id.get_filesize()
        for name in names:
            arrays[name] = _read(file, f"arrays/{name}", path, room)
            room -= arrays[name].nbytes
    return arrays, attributes


def _write(group: h5py.Group, name: str, array: np.ndarray) -> None:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    created = group.create_dataset(name, data=little, track_times=False)
    created.attrs["crc32"] = np.uint32(_checksum(little))


def _read(file: h5py.File, name: str, path: Path, room: int) -> np.ndarray:
    with reading(path, name):
        stored = dataset(file, name)
        if stored.dtype.kind not in _KINDS:
            raise ValueError(f"{stored} is there, expected an array of numbers")
        there = min(stored.id.get_storage_size(), room)
        if stored.nbytes > there or stored.chunks is not None:
            raise ValueError(f"{stored.nbytes} bytes are claimed and {there} are there")
        array = np.asarray(stored[()])
        recorded = integer(stored, "crc32")
    if _checksum(array) != recorded:
        raise LogCorruptError(f"{path}: {name} differs from its checksum; compute the result again")
    return array


def _checksum(array: np.ndarray) -> int:
    head = f"{array.dtype.str}{list(array.shape)}".encode()
    return crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc32(head))
