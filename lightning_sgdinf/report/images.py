"""Pictures as PNG bytes and as data addresses that a page can hold inside itself."""

from __future__ import annotations

import base64
import io

import numpy as np

from lightning_sgdinf.extras import require
from lightning_sgdinf.report.example import Example

LARGEST = 192
"""Longer sides are scaled down to this many pixels: a tile is no larger, and a page holds many."""


def pixels(example: Example) -> np.ndarray:
    """Return an example's picture as uint8, ``[H, W]`` or ``[H, W, C]``."""
    assert example.image is not None
    return np.round(np.asarray(example.image) * 255).astype(np.uint8)


def png(example: Example, *, largest: int = LARGEST) -> bytes:
    """Return an example's picture as PNG, at most ``largest`` pixels on a side."""
    image = require("PIL.Image", extra="report").fromarray(pixels(example))
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def data_address(content: bytes, media_type: str) -> str:
    """Return bytes as an address that needs no file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
