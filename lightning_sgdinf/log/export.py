"""A whole log as one plain HDF5 file, for other tools; `docs/format/export-v1.md` says what is in it."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.errors import LogError, LogExistsError, LogWriteError
from lightning_sgdinf.log.bit_patterns import word_type
from lightning_sgdinf.log.directory import publish
from lightning_sgdinf.log.documents import header_to_json, to_json
from lightning_sgdinf.log.hdf5 import new_file
from lightning_sgdinf.log.reader import RunLog
from lightning_sgdinf.log.records import Json, Step

EXPORT_FORMAT = "sgdinf-export/1"

_FILTERS = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "track_times": False}
_CHUNK_BYTES = 64 << 10
_MAX_CHUNK_BYTES = 4 << 20
_BLOCK_STEPS = 1024


def export(log: RunLog, target: str | os.PathLike[str]) -> None:
    """Write all of a log but the states of generators and stored batches.

    Args:
        log: An open log.
        target: File to make.

    Raises:
        LogExistsError: The file exists.
        LogWriteError: It cannot be written.
        LogCorruptError: The log differs from its checksums.
    """
    target = Path(target)
    if target.exists():
        raise LogExistsError(f"{target} exists; choose another name, or remove it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with new_file(temporary, EXPORT_FORMAT) as file:
            file.attrs.update({"run_id": log.header.run_id, "digest": log.digest, "end": log.end_reason})
            file["header"] = header_to_json(log.header).decode()
            _export_steps(file.create_group("steps"), log)
            _export_states(file.create_group("states"), log)
            for name, value in (log.average or {}).items():
                _Rows(file.require_group("average"), _escaped(name), value, 0).append(value)
        publish(temporary, target)
    except LogError:
        raise
    except (OSError, RuntimeError) as error:
        raise LogWriteError(f"{target} cannot be written: {error}; make its directory, or free some space") from error
    finally:
        temporary.unlink(missing_ok=True)


def _export_steps(group: h5py.Group, log: RunLog) -> None:
    columns = {
        "epoch": _column(group, "epoch", "<i4"),
        "global_step": _column(group, "global_step", "<i8"),
        "loss": _column(group, "loss", "<f8"),
        "accumulation": _column(group, "accumulation", "<i4"),
        "ids": _column(group, "ids", "<i8"),
        "ids_end": _column(group, "ids_end", "<i8"),
        "document": _column(group, "document", h5py.string_dtype()),
    }
    groups = max((len(step.groups) for step in log.steps(0, min(1, len(log)))), default=1)
    rates = _column(group, "lr", "<f8", groups)
    ids_end = 0
    for start in range(0, len(log), _BLOCK_STEPS):
        steps = list(log.steps(start, min(len(log), start + _BLOCK_STEPS)))
        ids = [step.example_ids for step in steps]
        _append(columns["epoch"], [step.epoch for step in steps])
        _append(columns["global_step"], [step.global_step for step in steps])
        _append(columns["loss"], [np.nan if step.loss is None else step.loss for step in steps])
        _append(columns["accumulation"], [step.accumulation for step in steps])
        _append(columns["ids"], np.concatenate(ids))
        ends = ids_end + np.cumsum([len(i) for i in ids])
        _append(columns["ids_end"], ends)
        ids_end = int(ends[-1])
        _append(columns["document"], [to_json(_document(step)).decode() for step in steps])
        _append_rates(rates, steps)
    checksums = [log.state_checksum(index) for index in range(len(log) + 1)]
    group.create_dataset("state_crc", data=np.array([c or 0 for c in checksums], "<u4"), **_FILTERS)


def _append_rates(rates: h5py.Dataset, steps: list[Step]) -> None:
    """Append learning rates; a run may get more param groups on the way."""
    known, widest = rates.shape[1], max(rates.shape[1], *(len(step.groups) for step in steps))
    if widest > known:
        rates.resize(widest, axis=1)
        rates[:, known:] = np.nan
    rows = np.full((len(steps), widest), np.nan)
    for row, step in zip(rows, steps, strict=True):
        row[: len(step.groups)] = step.learning_rates
    _append(rates, rows)


def _export_states(group: h5py.Group, log: RunLog) -> None:
    indices = log.state_indices
    group.create_dataset("index", data=indices.astype("<i8"), track_times=False)
    open_rows: dict[str, _Rows] = {}
    for row, index in enumerate(indices.tolist()):
        for part, name, key, value in log.state(index).items():
            path = "/".join(_escaped(p) for p in (part, name, key) if p)
            rows = open_rows.get(path)
            if rows is None or not rows.fits(value, row):
                rows = open_rows[path] = _Rows(group, path if rows is None else f"{path}@{row}", value, row)
            rows.append(value)


class _Rows:
    """The values of one tensor in successive stored states."""

    def __init__(self, group: h5py.Group, path: str, like: Tensor, first_row: int) -> None:
        self._shape, self._dtype, self._next = like.shape, like.dtype, first_row
        kind = _numpy_dtype(like.dtype)
        chunk = _chunk(tuple(like.shape), kind.itemsize)
        self._dataset = group.create_dataset(
            path,
            (0, *like.shape),
            maxshape=(None, *(n or None for n in like.shape)),
            chunks=chunk,
            dtype=kind,
            rdcc_nbytes=kind.itemsize * int(np.prod(chunk)),
            **_FILTERS,
        )
        self._dataset.attrs.update({"first_row": first_row, "dtype": dtype_name(like.dtype)})

    def fits(self, value: Tensor, row: int) -> bool:
        """Tell if a tensor goes on here."""
        return (value.shape, value.dtype, row) == (self._shape, self._dtype, self._next)

    def append(self, value: Tensor) -> None:
        """Append the value in the next stored state."""
        count = self._dataset.shape[0]
        self._dataset.resize(count + 1, axis=0)
        self._next += 1
        if value.numel():
            kind = self._dataset.dtype
            data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(kind)
            self._dataset[count] = data.reshape(tuple(value.shape))


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the type as stored; those that numpy does not have are the unsigned integers of their bit patterns."""
    if dtype is torch.bool:
        return np.dtype(bool)
    if dtype.is_complex:
        return np.dtype("<c8" if dtype is torch.complex64 else "<c16")
    return np.dtype(word_type(dtype_name(dtype)).plain)


def _chunk(shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return the shape of a chunk: a few small rows, or a part of a large one."""
    size = [max(1, n) for n in shape]
    while width * int(np.prod(size)) > _MAX_CHUNK_BYTES:
        largest = int(np.argmax(size))
        size[largest] = -(-size[largest] // 2)
    return max(1, _CHUNK_BYTES // (width * int(np.prod(size)))), *size


def _column(group: h5py.Group, name: str, dtype: object, columns: int | None = None) -> h5py.Dataset:
    shape = () if columns is None else (columns,)
    return group.create_dataset(
        name,
        (0, *shape),
        maxshape=(None, *(None for _ in shape)),
        chunks=(_BLOCK_STEPS, *shape),
        dtype=dtype,
        **_FILTERS,
    )


def _append(dataset: h5py.Dataset, values: object) -> None:
    count, more = dataset.shape[0], len(values)  # type: ignore[arg-type]
    dataset.resize(count + more, axis=0)
    dataset[count:] = values


def _document(step: Step) -> Json:
    """Return all of a step that is not in a column."""
    clip = step.clip
    return {
        "groups": [{"params": list(g.params), "options": dict(g.options)} for g in step.groups],
        "micro_batches": [
            {
                "batch_idx": micro.batch_idx,
                "rank": micro.rank,
                "draws": [
                    {
                        "n": len(d.example_ids),
                        "loader": d.loader,
                        "digest": d.digest,
                        "single": d.single,
                        "listed": d.listed,
                    }
                    for d in micro.draws
                ],
            }
            for micro in step.micro_batches
        ],
        "clip": None if clip is None else {"value": clip.value, "algorithm": clip.algorithm},
        "eval_modules": list(step.eval_modules),
        "average": None if step.average is None else list(step.average),
        "changed": list(step.changed),
    }


def _escaped(name: str) -> str:
    """Return a name as a part of a path."""
    return name.replace("%", "%25").replace("/", "%2F")
