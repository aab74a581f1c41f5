"""A run kept in memory, for small runs and tests; reads like `RunLog`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.errors import ConfigurationError, StateNotStoredError
from lightning_sgdinf.log.checksum import content_digest, state_checksum, step_checksum
from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.step_documents import encode_step
from lightning_sgdinf.state import ModelState


class MemoryLog:
    """A finished run of ``T`` steps.

    Args:
        header: Of the run.
        steps: Steps ``0 .. T - 1``.
        states: Stored states by index; ``T`` must be among them.
        average: Averaged parameters at the end, if any.
        checksums: Known checksums of states that are not stored, by index.

    Raises:
        ConfigurationError: Steps out of order, or no state ``T``.
    """

    finished = True
    end_reason = "completed"

    def __init__(
        self,
        *,
        header: Header,
        steps: Sequence[Step],
        states: Mapping[int, ModelState],
        average: Mapping[str, Tensor] | None = None,
        checksums: Mapping[int, int] | None = None,
    ) -> None:
        if [step.index for step in steps] != list(range(len(steps))):
            raise ConfigurationError(f"steps {[step.index for step in steps][:5]} ..., expected 0, 1, 2, ... in order")
        outside = [index for index in states if not 0 <= index <= len(steps)]
        if outside or len(steps) not in states:
            raise ConfigurationError(
                f"states {sorted(states)} of {len(steps)} steps, expected some of 0 to T, and T itself"
            )
        self.header, self.average = header, average
        self._steps = tuple(steps)
        self._states = {index: states[index].map(lambda v: v.detach().cpu().clone()) for index in sorted(states)}
        self._checksums = dict(checksums or {}) | {i: state_checksum(s) for i, s in self._states.items()}

    def __len__(self) -> int:
        """Return ``T``."""
        return len(self._steps)

    @property
    def digest(self) -> str:
        """The digest that the same content would have on disk."""
        crcs = []
        for step in self._steps:
            encoded = encode_step(step)
            crcs.append(
                step_checksum(
                    step.index,
                    step.index in self._states,
                    encoded.example_ids,
                    encoded.document,
                    [crc32(data) for data in encoded.blobs],
                    self._checksums.get(step.index, 0),
                )
            )
        column = np.array(crcs, "<u4")
        return content_digest(self.header.run_id, len(self), [column], self._checksums[len(self)])

    @property
    def state_indices(self) -> np.ndarray:
        """Indices of the stored states, int64, increasing, ``T`` last."""
        return np.array(list(self._states), np.int64)

    def step(self, index: int) -> Step:
        """Return step ``index`` of ``0 .. T - 1``.

        Raises:
            IndexError: There is no such step.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of a run of {len(self)} steps")
        return self._steps[index]

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield steps ``start .. stop - 1``, or downwards ``start - 1 .. stop`` if ``start > stop``.

        Raises:
            IndexError: Not all of them exist.
        """
        if not (0 <= start <= len(self) and 0 <= stop <= len(self)):
            raise IndexError(f"steps {start} to {stop} of a run of {len(self)} steps")
        yield from self._steps[start:stop] if start <= stop else reversed(self._steps[stop:start])

    def state(self, index: int) -> ModelState:
        """Return a copy of stored state ``index``.

        Raises:
            IndexError: There is no such state.
            StateNotStoredError: It is not stored.
        """
        self._require_state(index)
        if index not in self._states:
            raise StateNotStoredError(
                f"state {index} was not kept, only {list(self._states)}; replay from an earlier one"
            )
        return self._states[index].clone()

    def state_checksum(self, index: int) -> int | None:
        """Return the CRC-32 of state ``index``; ``None`` if it is neither stored nor known.

        Raises:
            IndexError: There is no such state.
        """
        self._require_state(index)
        return self._checksums.get(index)

    def _require_state(self, index: int) -> None:
        if not 0 <= index <= len(self):
            raise IndexError(f"state {index} of a run with states 0 to {len(self)}")
