"""Small pictures of very many examples, several to a sheet, in as good a quality as there is room for."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_sgdinf.extras import require
from lightning_sgdinf.report.embedded_data import characters

ACROSS = 8
"""Pictures in a line of a sheet, and lines in a sheet."""

_PER_SHEET = ACROSS * ACROSS
_SAMPLED_SHEETS = 6
_MARGIN = 0.97  # of the room that an estimate may fill

LOSSLESS = None
_RUNGS: tuple[tuple[int, int | None], ...] = (
    (64, LOSSLESS),
    (64, 85),
    (64, 70),
    (48, 70),
    (48, 50),
    (32, 60),
    (32, 45),
    (32, 30),
)
"""Longest side in pixels and quality, the best first."""

Picture = Callable[[int], np.ndarray]
"""The picture of an example by its id: bytes ``[H, W]`` or ``[H, W, 3 or 4]``."""


@dataclass(frozen=True, kw_only=True)
class Sheets:
    """Pictures of examples, `ACROSS` in a line, line by line, sheet after sheet.

    Attributes:
        ids: Whose pictures they are, in this order.
        width: Of one picture, in pixels.
        height: Likewise.
        files: The sheets.
        media_type: Of the files.
    """

    ids: tuple[int, ...]
    width: int
    height: int
    files: tuple[bytes, ...]
    media_type: str


def thumbnails(ids: Sequence[int], picture: Picture, *, room: int) -> Sheets | None:
    """Make the best sheets that fit: of all pictures if they can be had in any quality, otherwise of fewer.

    Args:
        ids: Examples with a picture in the order of their ranks; those at the ends are kept if not all fit.
        picture: Their pictures.
        room: Characters of base64 that there is room for.

    Returns:
        The sheets, or ``None`` if there are no pictures or not even one sheet fits.
    """
    if not ids:
        return None
    needed = 0
    sheet = None
    for side, quality in _RUNGS:
        sheet = _Sheet.measured(ids, picture, side, quality)
        needed = sheet.estimate(ids, picture)
        if needed <= room * _MARGIN:
            break
    assert sheet is not None
    kept = list(ids)
    while needed > room * _MARGIN and kept:
        count = int(len(kept) * min(0.98, room * _MARGIN / needed))
        kept = take_extremes(ids, count - count % _PER_SHEET)
        needed = sheet.estimate(kept, picture) if kept else 0
    files = tuple(sheet.file(kept[at : at + _PER_SHEET], picture) for at in range(0, len(kept), _PER_SHEET))
    while files and sum(characters(len(file)) for file in files) > room:  # the sample was luckier than the whole
        kept = take_extremes(kept, len(kept) - max(_PER_SHEET, len(kept) // 20))
        files = tuple(sheet.file(kept[at : at + _PER_SHEET], picture) for at in range(0, len(kept), _PER_SHEET))
    if not files:
        return None
    return Sheets(
        ids=tuple(kept), width=sheet.width, height=sheet.height, files=files, media_type=f"image/{sheet.kind.lower()}"
    )


def take_extremes(ids: Sequence[int], count: int) -> list[int]:
    """Return the first and the last of a sequence, ``count`` in all, in order."""
    if count >= len(ids):
        return list(ids)
    first = -(-count // 2)
    return [*ids[:first], *ids[len(ids) - (count - first) :]] if count > 0 else []


@dataclass(frozen=True)
class _Sheet:
    """Size and encoding of a sheet."""

    width: int
    height: int
    mode: str
    kind: str
    quality: int | None

    @classmethod
    def measured(cls, ids: Sequence[int], picture: Picture, side: int, quality: int | None) -> _Sheet:
        """Make cells as large as the largest of some pictures, but not larger than ``side``."""
        some = [picture(ids[k]) for k in range(0, len(ids), max(1, len(ids) // 50))]
        height, width = (max(image.shape[axis] for image in some) for axis in (0, 1))
        zoom = min(1.0, side / max(height, width))
        mode = "L" if all(image.ndim == 2 for image in some) else "RGB"
        webp = require("PIL.features", extra="report").check("webp")
        kind = "WEBP" if webp else ("PNG" if quality is None else "JPEG")
        return cls(max(1, round(width * zoom)), max(1, round(height * zoom)), mode, kind, quality)

    def estimate(self, ids: Sequence[int], picture: Picture) -> int:
        """Estimate the characters that all sheets would take from some of them."""
        count = math.ceil(len(ids) / _PER_SHEET)
        places = sorted({round(k * (count - 1) / max(1, _SAMPLED_SHEETS - 1)) for k in range(_SAMPLED_SHEETS)})
        some = [ids[p * _PER_SHEET : (p + 1) * _PER_SHEET] for p in places]
        size = sum(characters(len(self.file(part, picture))) for part in some)
        return math.ceil(size * len(ids) / sum(len(part) for part in some))

    def file(self, ids: Sequence[int], picture: Picture) -> bytes:
        """Encode one sheet."""
        images = require("PIL.Image", extra="report")
        lines = math.ceil(len(ids) / ACROSS)
        sheet = images.new(self.mode, (ACROSS * self.width, lines * self.height), "white")
        for place, i in enumerate(ids):
            sheet.paste(*self._cell(images.fromarray(picture(i)), place))
        buffer = io.BytesIO()
        if self.quality is None:
            sheet.save(buffer, format=self.kind, **({"lossless": True, "method": 4} if self.kind == "WEBP" else {}))
        else:
            sheet.save(buffer, format=self.kind, quality=self.quality, **({"method": 4} if self.kind == "WEBP" else {}))
        return buffer.getvalue()

    def _cell(self, image: Any, place: int) -> tuple[Any, tuple[int, int]]:
        """Return a picture that fits its cell, and its place: in the middle of it."""
        if image.mode == "RGBA":  # onto white: pages are made for looking at, not for layers
            behind = require("PIL.Image", extra="report").new("RGB", image.size, "white")
            behind.paste(image, mask=image.getchannel("A"))
            image = behind
        image = image if image.mode == self.mode else image.convert(self.mode)
        if image.width > self.width or image.height > self.height:
            image.thumbnail((self.width, self.height))
        left = (place % ACROSS) * self.width + (self.width - image.width) // 2
        top = (place // ACROSS) * self.height + (self.height - image.height) // 2
        return image, (left, top)
