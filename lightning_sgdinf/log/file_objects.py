"""Files that HDF5 reads and writes through Python, so that every byte passes here.

HDF5 may report success after a failed write, try again when a file is closed, and crash when that fails, too. What is
written through a `WrittenFile` is known to have been written, or not. What is read through a `ReadFile` comes from a
regular file that was opened without following a link or waiting for anybody.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from lightning_sgdinf.foreign_files import open_regular


class FileObject(io.RawIOBase):
    """A descriptor and a place; the descriptor is closed with the last reference."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._place = descriptor, 0

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def size(self) -> int:
        """Return the bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size()}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer from the place on; what is beyond the end reads as zeros."""
        view, read = memoryview(buffer), 0
        while read < len(view) and (got := os.preadv(self._descriptor, [view[read:]], self._place + read)):
            read += got
        view[read:] = bytes(len(view) - read)
        self._place += len(view)
        return len(view)

    def close(self) -> None:
        """Close the descriptor; harmless when done twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        super().close()


class ReadFile(FileObject):
    """A regular file, read only.

    Args:
        path: File.
        head: Bytes that are read instead of its first ones.
        size: Bytes that it is said to have; those that are missing read as zeros.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, *, head: bytes = b"", size: int | None = None) -> None:
        super().__init__(open_regular(path))
        self._head, self._size = head, size

    def size(self) -> int:
        """Return the bytes that the file is said to have."""
        return super().size() if self._size is None else self._size

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer from the place on."""
        start = self._place
        length = super().readinto(buffer)
        if start < len(self._head):
            part = self._head[start : start + length]
            memoryview(buffer)[: len(part)] = part
        return length


class WrittenFile(FileObject):
    """A new file being written.

    Once a write has failed, nothing more is written, and HDF5 is told that all is well: so it closes the file, and does
    not try again. Whoever made it asks `check`.

    Args:
        path: File; must not be there.

    Attributes:
        error: The first failure.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all of the data at the place."""
        view = memoryview(data).cast("B")
        try:
            written = 0
            while written < len(view) and self.error is None:
                written += os.pwrite(self._descriptor, view[written:], self._place + written)
        except OSError as error:
            self.error = error
        self._place += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the size."""
        size = self._place if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        return size

    def check(self) -> None:
        """Wait until the file is on the disk.

        Raises:
            OSError: A write has failed.
        """
        if self.error is not None:
            raise self.error
        os.fsync(self._descriptor)
