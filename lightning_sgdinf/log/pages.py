"""Steps in pages: everything of a step but states and batches, compressed a few steps at a time.

A flush makes one page of the steps since the last. A page is whole or it is not there: that is what makes a prefix of
pages the record of a prefix of steps, however the writer died. Section 3 of the format's specification says what is in
one.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from struct import Struct

import h5py
import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.hdf5 import Growing, ReadHdf5, checked_dataset, dataset, reading
from lightning_sgdinf.log.step_documents import EncodedStep
from lightning_sgdinf.log.twister import StreamEncoder

MAX_PAGE_BYTES = 1 << 30
MAX_STEPS = 4096
"""Steps of a segment."""

_FREE_BYTES, _MAX_RATIO = 64 << 20, 64  # of all pages, beside what each byte that is there may stand for
_MAX_STRINGS = 2_000_000

_HEAD = Struct("<6I")  # steps, example ids, bytes of an id, bytes of documents, uses of strings, new strings
_CHUNK, _ENDS_CHUNK = 8192, 128
_RECENT_STRINGS = 256


@dataclass(slots=True)
class Page:
    """Columns of the steps of a page, or of several pages one after another.

    As bytes a page is its head, then the columns in the order below, numbers of one width each, then ids, documents and
    strings. Columns of similar numbers side by side, and the bytes of ids by significance, are what compresses well.

    Attributes:
        stored: Per step 1 if the state before it is stored.
        state_crc: Per step the checksum of the state before it.
        crc: Per step its checksum.
        id_counts: Per step the number of its example ids.
        document_sizes: Per step the bytes of its document.
        string_counts: Per step how many byte strings it uses.
        batch_ends: Per step the byte at which its batches end.
        strings_used: Numbers of the byte strings that the steps use, in the segment.
        kinds: Per new byte string its form, see `lightning_sgdinf.log.twister`.
        strings: New byte strings as they are stored.
        ids: Example ids.
        documents: All documents.
    """

    stored: list[int] = field(default_factory=list)
    state_crc: list[int] = field(default_factory=list)
    crc: list[int] = field(default_factory=list)
    id_counts: list[int] = field(default_factory=list)
    document_sizes: list[int] = field(default_factory=list)
    string_counts: list[int] = field(default_factory=list)
    batch_ends: list[int] = field(default_factory=list)
    strings_used: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    strings: list[bytes] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    documents: list[bytes] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """Return the page, compressed."""
        ids = np.concatenate(self.ids) if self.ids else np.empty(0, "<i8")
        width = _id_width(ids)
        documents = b"".join(self.documents)
        parts = [
            _HEAD.pack(len(self.crc), len(ids), width, len(documents), len(self.strings_used), len(self.kinds)),
            bytes(self.stored),
            *(
                np.array(column, "<u4").tobytes()
                for column in (
                    self.state_crc, self.crc, self.id_counts, self.document_sizes, self.string_counts
                )
            ),
            np.array(self.batch_ends, "<u8").tobytes(),
            np.array(self.strings_used, "<u4").tobytes(),
            bytes(self.kinds),
            np.array([len(s) for s in self.strings], "<u4").tobytes(),
            # The lowest bytes of all ids, then their second bytes ..., up to the width of the largest id.
            np.ascontiguousarray(ids.view(np.uint8).reshape(-1, 8)[:, :width].T).tobytes(),
            documents,
            *self.strings,
        ]  # fmt: skip
        return zlib.compress(b"".join(parts))

    @classmethod
    def from_bytes(cls, data: bytes, most: int = MAX_PAGE_BYTES) -> tuple[Page, int]:
        """Return the page of some bytes, uncompressed again, and how many bytes it is then.

        Args:
            data: The bytes.
            most: Bytes that it may be.

        Raises:
            ValueError: It is not one.
        """
        head, inflated = _inflated(data, most)
        content = _Cursor(inflated)
        steps, ids, width, documents, used, strings = head
        page = cls(stored=list(content.take(steps)))
        for column in (page.state_crc, page.crc, page.id_counts, page.document_sizes, page.string_counts):
            column += content.numbers("<u4", steps)
        page.batch_ends += content.numbers("<u8", steps)
        page.strings_used += content.numbers("<u4", used)
        page.kinds += content.take(strings)
        sizes = content.numbers("<u4", strings)
        page.ids.append(_ids(content.take(width * ids), width, ids))
        page.documents.append(bytes(content.take(documents)))
        page.strings += [bytes(content.take(size)) for size in sizes]
        content.finish()
        # Steps are cut out of these parts by their sizes, so the sizes must add up.
        sums = sum(page.id_counts), sum(page.document_sizes), sum(page.string_counts)
        if sums != (ids, documents, used) or not steps:
            raise ValueError(f"a page of {steps} steps has {(ids, documents, used)} parts, its steps have {sums}")
        return page, _HEAD.size + len(inflated)


class PageWriter:
    """The pages of a segment being written.

    Args:
        file: A segment in which `create` has made them.
    """

    def __init__(self, file: h5py.File) -> None:
        self._bytes = Growing(dataset(file, "page"))
        self._ends = Growing(dataset(file, "page_end"))
        self._crc = 0  # of all pages
        self._written: list[int] = []  # their ends
        self._page = Page()
        self._strings: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._string_count = 0
        self._streams = StreamEncoder()
        self.side_bytes = 0

    @staticmethod
    def create(file: h5py.File) -> None:
        """Make the datasets."""
        for name, dtype, chunk in (("page", "|u1", _CHUNK), ("page_end", "<i8", _ENDS_CHUNK)):
            file.create_dataset(name, (0,), maxshape=(None,), chunks=(chunk,), dtype=dtype, track_times=False)

    def strings(self, step: EncodedStep) -> tuple[list[int], list[int]]:
        """Return numbers and checksums of the byte strings of a step; put them into the page if they are new."""
        places = [self._string(data) for data in step.blobs]
        return [number for number, _ in places], [crc for _, crc in places]

    def add(
        self, step: EncodedStep, strings: Sequence[int], *, stored: bool, state_crc: int, crc: int, batch_end: int
    ) -> None:
        """Add the next step.

        Args:
            step: The step.
            strings: Numbers of its byte strings.
            stored: The state before it is stored.
            state_crc: That state's checksum.
            crc: The step's checksum.
            batch_end: Byte at which its batches end.
        """
        page = self._page
        page.stored.append(int(stored))
        page.state_crc.append(state_crc)
        page.crc.append(crc)
        page.id_counts.append(len(step.example_ids))
        page.document_sizes.append(len(step.document))
        page.string_counts.append(len(strings))
        page.batch_ends.append(batch_end)
        page.strings_used += strings
        page.ids.append(step.example_ids)
        page.documents.append(step.document)
        self.side_bytes += 8 * len(step.example_ids) + len(step.document)

    def flush(self) -> None:
        """Write the page that the steps since the last one make."""
        if not self._page.crc:
            return
        data = self._page.to_bytes()
        self._crc = crc32(data, self._crc)
        self._bytes.append(np.frombuffer(data, np.uint8))
        self._written.append(self._bytes.length)
        self._ends.append(np.array([self._bytes.length], "<i8"))
        self._page = Page()

    def check(self, file: h5py.File) -> None:
        """Compare a file with all that was handed over.

        Args:
            file: The segment, opened again.

        Raises:
            ValueError: It differs.
        """
        ends, pages = dataset(file, "page_end")[()], dataset(file, "page")[()]
        if ends.tolist() != self._written or crc32(pages.data) != self._crc:
            raise ValueError("the pages are not those that were written")

    def _string(self, data: bytes) -> tuple[int, int]:
        known = self._strings.get(data)
        if known is None:
            known = self._string_count, crc32(data)
            self._string_count += 1
            kind, form = self._streams.encode(known[0], data)
            self._page.kinds.append(kind)
            self._page.strings.append(form)
            self.side_bytes += len(form)
            self._strings[data] = known
            if len(self._strings) > _RECENT_STRINGS:
                self._strings.popitem(last=False)
        else:
            self._strings.move_to_end(data)
        return known


def read_pages(file: ReadHdf5, path: Path, *, sealed: bool) -> Page:
    """Read all steps of a segment.

    Args:
        file: Open segment.
        path: Its path, for errors.
        sealed: The file was finished; otherwise the pages end at the first that is not whole.

    Raises:
        LogCorruptError: A page is damaged.
    """
    with reading(path, "pages"):
        ends = [0, *checked_dataset(file, "page_end", "<i8", sealed=sealed)[()].tolist()]
        data = checked_dataset(file, "page", "|u1", sealed=sealed)[()].tobytes()
    whole, room = Page(), _FREE_BYTES + _MAX_RATIO * len(data)
    for number, (start, end) in enumerate(pairwise(ends)):
        try:
            with reading(path, f"page {number}"):
                if not 0 <= start < end <= len(data):
                    raise ValueError(f"bytes {start} to {end} of {len(data)}")
                page, size = Page.from_bytes(data[start:end], room)
                room -= size
                if len(whole.crc) + len(page.crc) > MAX_STEPS:
                    raise ValueError(f"more than {MAX_STEPS} steps")
        except LogCorruptError:
            if sealed:
                raise
            break
        _extend(whole, page)
    if sealed and ends[-1] != len(data):
        raise LogCorruptError(f"{path}: the pages end at byte {ends[-1]} of {len(data)}; restore the file from a copy")
    return whole


def first_and_further(page: Page) -> tuple[int, float]:
    """Return the bytes that the first step of a segment takes, and those of each further one, compressed.

    The first brings what later ones only name again: names, settings, random states that have not moved.

    Args:
        page: All steps of a segment, as `read_pages` gives them.
    """
    new = max(page.strings_used[: page.string_counts[0]], default=-1) + 1
    first = Page(
        ids=[np.concatenate(page.ids)[: page.id_counts[0]]],
        documents=[b"".join(page.documents)[: page.document_sizes[0]]],
        strings_used=page.strings_used[: page.string_counts[0]],
        kinds=page.kinds[:new],
        strings=page.strings[:new],
        **{name: getattr(page, name)[:1] for name in _PER_STEP},
    )
    size, steps = len(first.to_bytes()), len(page.crc)
    return size, (len(page.to_bytes()) - size) / (steps - 1) if steps > 1 else float(size)


_PER_STEP = ("stored", "state_crc", "crc", "id_counts", "document_sizes", "string_counts", "batch_ends")


def _extend(whole: Page, page: Page) -> None:
    for name in Page.__slots__:
        getattr(whole, name).extend(getattr(page, name))


class _Cursor:
    """Reads on in a byte string, and never beyond it."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = memoryview(data), 0

    def take(self, size: int) -> memoryview:
        start, self._place = self._place, self._place + size
        if self._place > len(self._data):
            raise ValueError(f"a page ends at byte {len(self._data)}, expected {self._place}")
        return self._data[start : self._place]

    def numbers(self, dtype: str, count: int) -> list[int]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype).tolist()

    def finish(self) -> None:
        if self._place != len(self._data):
            raise ValueError(f"a page has {len(self._data)} bytes, its parts {self._place}")


def _inflated(data: bytes, most: int) -> tuple[tuple[int, ...], bytes]:
    """Return the numbers of a page's head, and what follows it; nothing is unpacked for a head that no page has."""
    stream = zlib.decompressobj()
    try:
        head = _HEAD.unpack(_Cursor(stream.decompress(data, _HEAD.size)).take(_HEAD.size))
        steps, ids, width, documents, used, strings = head
        if width > 8 or steps > MAX_STEPS or max(used, strings) > _MAX_STRINGS:
            raise ValueError(f"ids of {width} bytes, {steps} steps, {max(used, strings)} byte strings")
        if (least := width * ids + documents) > most:
            raise ValueError(f"a page of at least {least} bytes, where {most} may be")
        content = stream.decompress(stream.unconsumed_tail, max(1, min(most, MAX_PAGE_BYTES) - _HEAD.size))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not stream.eof or stream.unused_data:
        raise ValueError("a compressed page is cut off, too large, or followed by something")
    return head, content


def _id_width(ids: np.ndarray) -> int:
    """Return the bytes of the shortest integer that holds all ids; those below zero take 8."""
    if not len(ids):
        return 0
    largest = int(ids.max())
    return 8 if ids.min() < 0 else max(1, -(-largest.bit_length() // 8))


def _ids(planes: memoryview, width: int, count: int) -> np.ndarray:
    """Return ids from their planes of bytes ``[width, count]``, the lowest first; the bytes that were cut off are 0."""
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :width] = np.frombuffer(planes, np.uint8).reshape(width, count).T
    return wide.reshape(-1).view("<i8")
