"""States of Mersenne twisters as places in a stream, a hundred times smaller.

A generator state is 2.5 kB of words that look random, and the state one step later is another. But the words are only
ever replaced all at once, by a function of themselves (the *twist*); between two twists a position moves. So a state is
that of an earlier one, twisted ``n`` times, and a few bytes more. Finding ``n`` is trying: the twists ahead of each
known state are computed once, and looked up.

The twist is done by numpy's own generator, in whose memory the words are put.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct

import numpy as np

RAW, WIDE, NARROW = 0, 1, 2
"""Form of a stored byte string: as it is, or with its 624 words left out. They are 8 bytes each from byte 24 on
(torch), or 4 bytes each from the beginning on (numpy, python)."""

MAX_TWISTS = 256
_SIZES = {5056: WIDE, 2512: NARROW, 2513: NARROW}
_WORDS_BYTES = 4 * 624
_FIRST_LOOK, _LOOK_AHEAD = 64, 32
_STREAMS = 64
_PATIENCE, _PAUSE = 8, 256
_PLACE = Struct("<II")


class Twister:
    """Twists words, one twist after another.

    Args:
        words: 624 words of 4 bytes.
    """

    def __init__(self, words: bytes) -> None:
        self._generator = np.random.MT19937(0)
        self._address = self._generator.ctypes.state_address
        self._position = ctypes.c_int32.from_address(self._address + _WORDS_BYTES)
        ctypes.memmove(self._address, words, _WORDS_BYTES)

    def next(self) -> bytes:
        """Return the words after one more twist."""
        self._position.value = 624  # all are used up, so that the next draw twists
        self._generator.random_raw(1, output=False)
        return ctypes.string_at(self._address, _WORDS_BYTES)


def split(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Return kind, words and the rest of a generator's state; ``None`` if it is none."""
    kind = _SIZES.get(len(data), RAW)
    if kind == NARROW:
        return kind, data[:_WORDS_BYTES], data[_WORDS_BYTES:]
    if kind == WIDE:
        wide = np.frombuffer(data, "<u8", 624, 24)
        if not (wide >> np.uint64(32)).any():
            return kind, wide.astype("<u4").tobytes(), data[:24] + data[24 + 2 * _WORDS_BYTES :]
    return None


def join(kind: int, words: bytes, rest: bytes) -> bytes:
    """Return the generator's state of its parts: the inverse of `split`."""
    if kind == NARROW:
        return words + rest
    return rest[:24] + np.frombuffer(words, "<u4").astype("<u8").tobytes() + rest[24:]


@dataclass(slots=True, eq=False)
class _Stream:
    """Twists ahead of a state that is stored as it is."""

    base: int
    kind: int
    twister: Twister
    names: list[bytes]  # of the words after 0, 1, ... twists


class StreamEncoder:
    """Finds states that follow from earlier ones, within one segment."""

    def __init__(self) -> None:
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._places: dict[tuple[int, bytes], tuple[_Stream, int]] = {}
        self._misses = 0

    def encode(self, number: int, data: bytes) -> tuple[int, bytes]:
        """Return kind and stored form of a byte string.

        Args:
            number: The one it gets in the segment.
            data: Any byte string.
        """
        parts = split(data)
        if parts is None:
            return RAW, data
        kind, words, rest = parts
        name = _name(words)
        place = self._places.get((kind, name))
        if place is None:
            self._begin(_Stream(number, kind, Twister(words), [name]))
            return RAW, data
        stream, twists = place
        self._misses = 0
        self._streams.move_to_end(stream.base)
        self._look_ahead(stream, twists + _LOOK_AHEAD)
        return kind, _PLACE.pack(stream.base, twists) + rest

    def _begin(self, stream: _Stream) -> None:
        """Begin a stream; give up looking ahead for a while if states turn out not to follow from each other."""
        self._streams[stream.base] = stream
        self._places[stream.kind, stream.names[0]] = stream, 0
        self._misses += 1
        if self._misses <= _PATIENCE or self._misses % _PAUSE == 0:
            self._look_ahead(stream, _FIRST_LOOK)
        if len(self._streams) > _STREAMS:
            forgotten = self._streams.popitem(last=False)[1]
            for name in forgotten.names:
                if self._places.get((forgotten.kind, name), (None,))[0] is forgotten:
                    del self._places[forgotten.kind, name]

    def _look_ahead(self, stream: _Stream, twists: int) -> None:
        while len(stream.names) <= min(twists, MAX_TWISTS):
            name = _name(stream.twister.next())
            self._places[stream.kind, name] = stream, len(stream.names)
            stream.names.append(name)


class StreamDecoder:
    """Puts states together again; fast when those of one base are asked for one after another."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], tuple[Twister, list[bytes]]] = OrderedDict()

    def place(self, stored: bytes) -> tuple[int, int, bytes]:
        """Return number of the base, number of twists, and the rest of a stored form.

        Raises:
            ValueError: It is none.
        """
        if len(stored) < _PLACE.size:
            raise ValueError(f"a generator's state of {len(stored)} bytes")
        base, twists = _PLACE.unpack_from(stored)
        if twists > MAX_TWISTS:
            raise ValueError(f"a generator's state is {twists} twists from another, expected {MAX_TWISTS} at most")
        return base, twists, stored[_PLACE.size :]

    def decode(self, kind: int, base: int, base_data: bytes, twists: int, rest: bytes) -> bytes:
        """Return the byte string.

        Args:
            kind: `WIDE` or `NARROW`.
            base: Number of its base.
            base_data: The base.
            twists: From the base to it.
            rest: All but its words.

        Raises:
            ValueError: The base is no state of that kind.
        """
        known = self._known.get((kind, base))
        if known is None:
            parts = split(base_data)
            if parts is None or parts[0] != kind:
                raise ValueError(f"byte string {base} is no generator's state of kind {kind}")
            known = self._known[kind, base] = Twister(parts[1]), [parts[1]]
            while len(self._known) > _STREAMS // 4:
                self._known.popitem(last=False)
        twister, words = known
        while len(words) <= twists:
            words.append(twister.next())
        return join(kind, words[twists], rest)


def _name(words: bytes) -> bytes:
    return blake2b(words, digest_size=16).digest()
