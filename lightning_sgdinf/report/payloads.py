"""Words, columns, contributions and pictures of each training example, which a page holds beside its scores.

Each has its share of the page's size. Where that is too small for all examples, those at both ends of the ranking come
first, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lightning_sgdinf.report.embedded_data import EmbeddedData, Reference, characters, compressed_strings
from lightning_sgdinf.report.fragments import shortened
from lightning_sgdinf.report.thumbnails import ACROSS, Picture, take_extremes, thumbnails

Part: TypeAlias = "dict[str, Any] | None"
"""An entry of the page's index; ``None`` if there is nothing to hold."""

WORDS = 6_000_000
"""Characters of a page that texts may take; columns, likewise."""

EPOCHS = 3_000_000
"""Characters of a page that contributions may take."""

_LENGTHS = (None, 4000, 2000, 1000, 500, 250, 120)
_SAMPLE = 400
_STEPS = 32767


def names(embedded: EmbeddedData, values: Sequence[str]) -> dict[str, Reference]:
    """Embed one of few names per example."""
    known = list(dict.fromkeys(values))
    codes = {name: code for code, name in enumerate(known)}
    return {"names": embedded.strings(known), "codes": embedded.codes([codes[v] for v in values], len(known))}


def texts(embedded: EmbeddedData, by_id: Mapping[int, str], order: Sequence[int], notes: list[str]) -> Part:
    """Embed texts by id, shortened if they must be."""
    ranked = [i for i in order if i in by_id]
    if not ranked:
        return None
    some = [by_id[i] for i in ranked[:: max(1, len(ranked) // _SAMPLE)]]
    needed, length = 0.0, None
    for length in _LENGTHS:
        needed = _needed([shortened(text, length) for text in some], len(ranked))
        if needed <= WORDS:
            break
    if length is not None:
        notes.append(f"Texts are here up to {length:,} characters.")
    kept = _fitting(ranked, needed, WORDS, "Texts are", notes)
    return {
        "ids": _ids(embedded, kept, len(order)),
        "values": embedded.strings([shortened(by_id[i], length) for i in kept]),
    }


def htmls(embedded: EmbeddedData, by_id: Mapping[int, str], order: Sequence[int], notes: list[str]) -> Part:
    """Embed HTML by id, never shortened: half of it would be something else."""
    ranked = [i for i in order if i in by_id]
    if not ranked:
        return None
    needed = _needed([by_id[i] for i in ranked[:: max(1, len(ranked) // _SAMPLE)]], len(ranked))
    kept = _fitting(ranked, needed, WORDS, "What examples look like is", notes)
    return {"ids": _ids(embedded, kept, len(order)), "values": embedded.strings([by_id[i] for i in kept])}


def table(
    embedded: EmbeddedData, by_id: Mapping[int, Mapping[str, str | float]], order: Sequence[int], notes: list[str]
) -> Part:
    """Embed rows by id, kept by columns: numbers as they are, anything else as words."""
    ranked = [i for i in order if i in by_id]
    if not ranked:
        return None
    columns = list(dict.fromkeys(name for i in sorted(by_id) for name in by_id[i]))
    some = ranked[:: max(1, len(ranked) // _SAMPLE)]
    trial = EmbeddedData()
    for name in columns:
        _cells(trial, name, [by_id[i].get(name, "") for i in some])
    kept = _fitting(ranked, len(trial) * len(ranked) / len(some), WORDS, "Rows are", notes)
    return {
        "ids": _ids(embedded, kept, len(order)),
        "columns": [_cells(embedded, name, [by_id[i].get(name, "") for i in kept]) for name in columns],
    }


def epochs(embedded: EmbeddedData, per_epoch: np.ndarray, order: Sequence[int], notes: list[str]) -> dict[str, Any]:
    """Embed the contribution of each epoch, ``[E, N]``, in 32,767ths of each example's largest."""
    count = len(per_epoch)
    kept = _fitting(order, characters(2 * count) * len(order), EPOCHS, "What each epoch contributed is", notes)
    values = per_epoch[:, kept].T
    scale = np.abs(values).max(1)
    unit = float(scale.max(initial=0)) or 1.0  # keeps what is very small or very large within four-byte numbers
    shares = np.round(values / np.where(scale > 0, scale, 1)[:, None] * _STEPS).astype(np.int16)
    return {
        "count": count,
        "unit": unit,
        "ids": _ids(embedded, kept, len(order)),
        "scale": embedded.array((scale / unit).astype(np.float32)),
        "values": embedded.array(shares),
    }


def sheets(embedded: EmbeddedData, picture: Picture, ranked: Sequence[int], room: int, notes: list[str]) -> Part:
    """Embed thumbnails of examples in the order of their ranks, so that neighbours in the list share a sheet."""
    if not ranked:
        return None
    made = thumbnails(ranked, picture, room=room)
    count = 0 if made is None else len(made.ids)
    if count < len(ranked):
        notes.append(f"Pictures are here for the {count:,} most harmful and most helpful examples.")
    if made is None:
        return None
    return {
        "ids": embedded.array(np.asarray(made.ids, np.uint32)),
        "count": count,
        "across": ACROSS,
        "width": made.width,
        "height": made.height,
        "type": made.media_type,
        "parts": [embedded.blob(file) for file in made.files],
    }


def _needed(some: Sequence[str], count: int) -> float:
    """Return the number of characters that ``count`` strings like these take."""
    return characters(len(compressed_strings(some))) * count / len(some)


def _fitting(ranked: Sequence[int], needed: float, room: int, what: str, notes: list[str]) -> list[int]:
    """Return the ids, increasing, of those examples from the ends of the ranking whose share fits."""
    if needed <= room:
        return sorted(ranked)
    kept = sorted(take_extremes(ranked, int(len(ranked) * room / needed)))
    notes.append(f"{what} here for the {len(kept):,} most harmful and most helpful examples.")
    return kept


def _ids(embedded: EmbeddedData, ids: Sequence[int], count: int) -> Reference | None:
    """Embed the ids of the values that follow; ``None`` for those of all in order."""
    return None if len(ids) == count else embedded.array(np.asarray(ids, np.uint32))


def _cells(embedded: EmbeddedData, name: str, values: Sequence[str | float]) -> dict[str, Any]:
    if all(value == "" or not isinstance(value, str) for value in values):
        return {
            "name": name,
            "values": embedded.array(np.array([np.nan if v == "" else v for v in values], np.float64)),
        }
    return {"name": name, **names(embedded, [str(value) for value in values])}
