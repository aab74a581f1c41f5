"""Read and restore the random number generators that a training step may draw from.

One state is a few named byte strings, one per generator, so that it can be stored without pickling and equal streams
can be stored once.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

RandomState = Mapping[str, bytes]
"""Generator name (``"torch"``, ``"numpy"``, ``"python"``, ``"cuda:0"`` ...) to its state."""

TWISTER_BYTES = 4 * 625
"""Size of a Mersenne twister: 624 words and the position in them."""

# Where a state says, after the twister, whether a normal deviate is cached: an int, and a bool after the version.
_DEVIATE = {"numpy": slice(0, 4), "python": slice(4, 5)}


def capture(*, devices: bool = True) -> dict[str, bytes]:
    """Return the state of torch's, numpy's and python's global generators, and of the CUDA ones in use.

    Args:
        devices: Also read the CUDA generators, if CUDA is initialised (never in a worker process).
    """
    state = {"torch": torch_state(), "numpy": numpy_state(), "python": python_state()}
    return state | device_states() if devices else state


def torch_state() -> bytes:
    """Return the state of torch's generator for the CPU."""
    return torch.random.get_rng_state().numpy().tobytes()


def numpy_state() -> bytes:
    """Return the state of numpy's global generator: 624 words and the position in them, then the cached normal
    deviate."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return np.asarray(keys, "<u4").tobytes() + struct.pack("<iid", position, has_gauss, cached)


def python_state() -> bytes:
    """Return the state of python's global generator: 624 words and the position in them, then the cached normal
    deviate."""
    version, words, gauss = random.getstate()
    tail = struct.pack("<i?d", version, gauss is not None, gauss if gauss is not None else 0.0)
    return struct.pack(f"<{len(words)}I", *words) + tail


def numpy_memory() -> bytes | None:
    """Read words and position of numpy's global generator where they lie in memory, at the address that numpy publishes
    for use from C; ``None`` if it is another kind of generator."""
    generator = getattr(np.random, "get_bit_generator", lambda: None)()
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, TWISTER_BYTES)


def python_memory() -> bytes | None:
    """Read words and position of python's global generator where they lie in CPython's ``random.Random``, after the
    object's head; ``None`` if it is laid out otherwise or a normal deviate is cached."""
    instance = getattr(random, "_inst", None)
    offset = object.__basicsize__
    if getattr(instance, "gauss_next", 0.0) is not None or type(instance).__basicsize__ < offset + TWISTER_BYTES:
        return None
    memory = ctypes.string_at(id(instance) + offset, TWISTER_BYTES)
    return memory[4:] + memory[:4]


def device_states() -> dict[str, bytes]:
    """Return the states of the CUDA generators, if CUDA is in use."""
    if not torch.cuda.is_initialized():
        return {}
    return {f"cuda:{i}": torch.cuda.get_rng_state(i).numpy().tobytes() for i in range(torch.cuda.device_count())}


def restore(state: RandomState) -> None:
    """Put the generators named in ``state`` back to it; the others are left alone.

    Setting numpy's twister takes 0.2 ms, and replay asks for it three times per step. So a generator
    that has not moved since it was last put to the same state is left as it is.
    """
    for name, data in state.items():
        if _last.get(name) == data and _unmoved(name, data):
            continue
        _last[name] = data
        if name == "torch":
            torch.random.set_rng_state(_tensor(data))
        elif name == "numpy":
            keys = np.frombuffer(data[:-16], "<u4").astype(np.uint32)
            position, has_gauss, cached = struct.unpack("<iid", data[-16:])
            np.random.set_state(("MT19937", keys, position, has_gauss, cached))  # noqa: NPY002
        elif name == "python":
            tail = struct.calcsize("<i?d")
            words = np.frombuffer(data[:-tail], "<u4")
            version, has_gauss, gauss = struct.unpack("<i?d", data[-tail:])
            random.setstate((version, tuple(words.tolist()), gauss if has_gauss else None))
        elif name.startswith("cuda:") and torch.cuda.is_available():
            torch.cuda.set_rng_state(_tensor(data), int(name.removeprefix("cuda:")))


_last: dict[str, bytes] = {}  # what each generator of this process was last put to


def _unmoved(name: str, data: bytes) -> bool:
    """Tell if the twister that was put to ``data`` is there still.

    A cached normal deviate lies outside the twister. Where ``data`` has none, none can have come without moving it.
    """
    memory = {"numpy": numpy_memory, "python": python_memory}.get(name, lambda: None)()
    return memory is not None and memory == data[:TWISTER_BYTES] and not any(data[TWISTER_BYTES:][_DEVIATE[name]])


@contextmanager
def preserved() -> Iterator[None]:
    """Leave every generator as it was."""
    before = capture()
    try:
        yield
    finally:
        restore(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator for the time of a ``with`` block, and restore it afterwards.

    Args:
        seed: From 0 on, below ``2**32``.
    """
    with preserved():
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # otherwise the seed would wait there for whoever starts CUDA
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        yield


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
