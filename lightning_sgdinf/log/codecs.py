"""Codecs: make rows of states small, without loss.

A codec says how often differences of successive states are taken, and which HDF5 filters the chunks go through. Only
filters whose decoder stays within its bounds whatever it is given are used: a damaged chunk must be an error, not the
end of the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import hdf5plugin

from lightning_sgdinf.errors import ConfigurationError

AUTO = "auto"
"""The name under which users ask for a trial, see `lightning_sgdinf.log.codec_choice`."""

_SHUFFLE, BLOSC, ZSTD = 2, 32001, 32015  # numbers of HDF5 filters


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store the rows of a flat buffer.

    Attributes:
        name: As users write it and segments say it.
        order: Of the differences of successive states that are stored: 0, 1 or 2. There are as many absolute anchors at
            either end of a segment.
        filter: Arguments of ``create_dataset`` that select the HDF5 filters.
        filters: Numbers of these filters, in the order in which they are applied.
    """

    name: str
    order: int
    filter: Mapping[str, Any] = field(default_factory=dict)
    filters: tuple[int, ...] = ()


_LZ4 = dict(hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE))
_ZSTD = {**hdf5plugin.Zstd(clevel=1), "shuffle": True}

CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("none", order=0),
        Codec("delta", order=1, filter=_LZ4, filters=(BLOSC,)),
        Codec("small", order=1, filter=_ZSTD, filters=(_SHUFFLE, ZSTD)),
        Codec("delta2", order=2, filter=_ZSTD, filters=(_SHUFFLE, ZSTD)),
    )
}
"""By name, the fastest first."""


def codec_named(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in CODECS:
        raise ConfigurationError(f"codec {name!r} is unknown, expected one of {', '.join(map(repr, CODECS))}")
    return CODECS[name]


def check_codec(name: str) -> None:
    """Check the codec that a user asks for: a known one, or ``"auto"``.

    Raises:
        ConfigurationError: It is neither.
    """
    if name not in CODECS and name != AUTO:
        names = ", ".join(map(repr, (*CODECS, AUTO)))
        raise ConfigurationError(f"codec {name!r} is unknown, expected one of {names}")
