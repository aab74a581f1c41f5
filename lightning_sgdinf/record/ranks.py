"""One record of a run on several processes (DDP).

All processes take the same steps from the same parameters; each on examples of its own, under random numbers of its
own, and the gradient is the mean of theirs. So process 0 writes the log, states included, and the others send it what
they fed into each step, some ten kilobytes, through a key-value store of their own. No collective operation is added to
the training: a process sends and goes on, and process 0 fetches the others' part of a step when the next one begins,
when it has long been there.

A process that stops recording says so, and then all of them do; the training goes on. One that ends without a word, on
this machine, is missed within a second.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lightning_sgdinf.errors import SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.log import Draw, MicroBatch, Step
from lightning_sgdinf.log.step_documents import EncodedStep, decode_step, encode_step
from lightning_sgdinf.random_state import RandomState
from lightning_sgdinf.record.writer import SilentWriter, Writer, take_buffers_of
from lightning_sgdinf.state import Layout

Result = TypeVar("Result")

_PATIENCE = timedelta(minutes=10)  # with a process that has taken a step and not yet told of it
_LOOK_AGAIN = timedelta(seconds=1)
_ANSWER = timedelta(seconds=60)  # of the store, which process 0 keeps
_LOOK_EVERY = 64  # steps, for whether process 0 still records
_OWN_DEVICE = "device"


def agreed(trainer: Any, choose: Callable[[], Result]) -> Result:
    """Return in all processes what process 0 chooses; what it raises is raised in all."""
    if trainer.world_size == 1:
        return choose()
    chosen, error = None, None
    if trainer.global_rank == 0:
        try:
            chosen = choose()
        except SgdInfluenceError as raised:
            error = raised
    chosen, error = trainer.strategy.broadcast((chosen, error))
    if error is not None:
        raise error
    return chosen


class Mailbox:
    """Takes messages of the training processes to process 0.

    Args:
        rank: This process.
        world: Number of processes.
        store: Reaches all of them.
    """

    def __init__(self, rank: int, world: int, store: TCPStore) -> None:
        self.rank, self.world = rank, world
        self._store = store
        self._store.set(_of(rank, "process"), f"{os.getpid()}@{socket.gethostname()}")

    @classmethod
    def of(cls, trainer: Any) -> Mailbox:
        """Return the mailbox of a Trainer's processes; all of them must ask for it at the same time."""
        strategy, rank = trainer.strategy, trainer.global_rank
        own = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=_ANSWER) if not rank else None
        port = strategy.broadcast(own.port if own is not None else 0)
        if own is None:
            host = os.environ.get("MASTER_ADDR", "localhost")
            own = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_ANSWER)
        return cls(rank, trainer.world_size, own)

    def send(self, index: int, message: bytes) -> None:
        """Send, from any process but 0, its message about step ``index``.

        Raises:
            UnsupportedRunError: Process 0 is gone, or has stopped recording.
        """
        try:
            self._store.set(_key(self.rank, index), message)  # pyright: ignore[reportArgumentType]
            reason = self._farewell(0) if not index % _LOOK_EVERY else None
        except RuntimeError as error:
            reason = f"it cannot be reached: {error}"
        if reason is not None:
            raise UnsupportedRunError(f"process 0, which writes the log, has stopped recording ({reason})")

    def stop(self, reason: str) -> None:
        """Tell the others that this process records no more."""
        with suppress(RuntimeError):
            self._store.set(_of(self.rank, "stopped"), reason)

    def fetch(self, rank: int, index: int) -> bytes:
        """Return, in process 0, the message of process ``rank`` about step ``index``; `drop` it then.

        Raises:
            UnsupportedRunError: It does not come; the process is gone, or has stopped recording.
        """
        key, until, reason = _key(rank, index), time.monotonic() + _PATIENCE.total_seconds(), None
        try:
            while not self._store.check([key]):
                if time.monotonic() > until:
                    reason = f"no word for {_PATIENCE.total_seconds():.0f} s"
                if reason is not None:
                    break
                reason = self._farewell(rank) or self._death(rank)  # before which a message may have come
                if reason is None:
                    with suppress(RuntimeError):  # nothing has come yet
                        self._store.wait([key], _LOOK_AGAIN)
            else:
                return self._store.get(key)
        except RuntimeError as error:
            reason = str(error)
        raise UnsupportedRunError(
            f"process {rank} has not told what it fed into step {index} ({reason}); the log holds the steps before"
        )

    def _farewell(self, rank: int) -> str | None:
        """Return why a process has stopped recording; ``None`` if it has not."""
        key = _of(rank, "stopped")
        return self._store.get(key).decode(errors="replace") if self._store.check([key]) else None

    def _death(self, rank: int) -> str | None:
        """Return that a process is gone; ``None`` if it lives, or nobody can tell."""
        if not self._store.check([_of(rank, "process")]):  # it is about to tell
            return None
        process, _, host = self._store.get(_of(rank, "process")).decode().partition("@")
        return f"process {process} is gone" if host == socket.gethostname() and not _lives(int(process)) else None

    def drop(self, rank: int, index: int) -> None:
        """Forget, in process 0, a message that is not needed any more."""
        self._store.delete_key(_key(rank, index))


class Sender(SilentWriter):
    """The writer of a recording in any process but 0: sends a message per step, and no states.

    Args:
        mailbox: Leads to process 0.
        device: Of this process, as random states call it.
    """

    def __init__(self, mailbox: Mailbox, device: str) -> None:
        self._mailbox = mailbox
        self._device = device

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None:
        """Send what this process fed into a step."""
        del layout, flat, store
        own = [_renamed(micro, self._device, _OWN_DEVICE) for micro in step.micro_batches]
        self._mailbox.send(step.index, pack(encode_step(replace(step, micro_batches=tuple(own)))))

    def finish(
        self,
        layout: Layout,
        flat: dict[str, Tensor],
        *,
        average: Mapping[str, Tensor] | None = None,
        reason: str = "completed",
    ) -> None:
        """Say that there is no more to come."""
        self._mailbox.stop(reason)

    def abandon(self, reason: str) -> None:
        """Say that there is no more to come."""
        self._mailbox.stop(reason)


class Collector:
    """The writer of a recording in process 0: joins each step with what the other processes fed into it.

    Args:
        writer: The log.
        mailbox: Of all processes.
        device: Of process 0, as random states call it; the other processes' random numbers are put there in replay.
    """

    def __init__(self, writer: Writer, mailbox: Mailbox, device: str) -> None:
        self._writer = writer
        self._mailbox = mailbox
        self._device = device
        self._take_buffers = take_buffers_of(writer)
        self._joined: tuple[Step, Step] | None = None  # the last step, of this process and of all
        self._put: Step | None = None
        self.flush, self.sizes, self.finish = writer.flush, writer.sizes, writer.finish

    @property
    def stopped(self) -> str:
        """See `lightning_sgdinf.log.LogWriter`."""
        return getattr(self._writer, "stopped", "")

    def take_buffers(self, layout: Layout) -> dict[str, Tensor]:
        """Return a free set of flat buffers of the log's."""
        return self._take_buffers(layout)

    def abandon(self, reason: str) -> None:
        """End the log, and let the others know."""
        self._mailbox.stop(reason)
        self._writer.abandon(reason)

    def put(self, step: Step, layout: Layout, flat: dict[str, Tensor], *, store: bool = True) -> None:
        """Write the step of all processes, and the state before it.

        Raises:
            LogWriteError: Writing failed.
            UnsupportedRunError: A process is gone, or has stopped recording.
        """
        if step is self._put:  # again, after an interrupt
            return
        if self._joined is None or self._joined[0] is not step:
            self._joined = step, self._join(step)
        self._writer.put(self._joined[1], layout, flat, store=store)
        self._put = step
        for rank in range(1, self._mailbox.world):
            self._mailbox.drop(rank, step.index)

    def _join(self, step: Step) -> Step:
        joined: list[MicroBatch] = []
        for rank in range(1, self._mailbox.world):
            own = unpack(step.index, self._mailbox.fetch(rank, step.index))
            joined += [replace(_renamed(m, _OWN_DEVICE, self._device), rank=rank) for m in own.micro_batches]
        return replace(
            step,
            micro_batches=(*joined, *step.micro_batches),
            accumulation=step.accumulation * self._mailbox.world,
        )


def pack(step: EncodedStep) -> bytes:
    """Return an encoded step as one byte string."""
    parts: Sequence[bytes] = (
        step.document,
        step.example_ids.tobytes(),
        *step.blobs,
        *step.batches,
    )
    sizes = struct.pack(f"<{len(parts) + 2}Q", len(step.blobs), len(parts), *map(len, parts))
    return b"".join((sizes, *parts))


def unpack(index: int, message: bytes) -> Step:
    """Return the step of a packed one."""
    blobs, count = struct.unpack_from("<2Q", message)
    offset = 8 * (count + 2)
    parts = []
    for size in struct.unpack_from(f"<{count}Q", message, 16):
        parts.append(message[offset : offset + size])
        offset += size
    document, ids, *rest = parts
    batches = rest[blobs:]
    return decode_step(
        index,
        document,
        np.frombuffer(ids, "<i8"),
        rest[:blobs],
        read_batch=lambda _, entries, place: batches[place],
    )


def _key(rank: int, index: int) -> str:
    return f"{rank}/{index}"


def _of(rank: int, fact: str) -> str:
    return f"{rank}/{fact}"


def _lives(process: int) -> bool:
    """Tell if a process of this machine runs; one that has ended and was not waited for does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or no Linux: nobody can tell
        return True


def _renamed(micro: MicroBatch, name: str, other: str) -> MicroBatch:
    """Return a pass with the random state of device ``name`` called ``other``, and those of further devices left
    out."""

    def in_states(states: RandomState) -> dict[str, bytes]:
        kept = {n: data for n, data in states.items() if not n.startswith("cuda:")}
        data = states.get(name)
        kept.pop(name, None)
        return kept | ({other: data} if data is not None else {})

    def in_draw(draw: Draw) -> Draw:
        return replace(draw, random=in_states(draw.random)) if draw.random else draw

    return replace(
        micro,
        draws=tuple(in_draw(d) for d in micro.draws),
        transferred_with=in_states(micro.transferred_with),
        stepped_with=in_states(micro.stepped_with),
    )
