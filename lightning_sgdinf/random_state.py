"""The random number generators a training step may draw from, taken down and put back.

One state is a few named byte strings, one per generator, so that it can be stored without pickling and equal streams
can be stored once.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

RandomState = Mapping[str, bytes]
"""Generator name (``"torch"``, ``"numpy"``, ``"python"``, ``"cuda:0"`` ...) to its state."""


def capture(*, devices: bool = True) -> dict[str, bytes]:
    """The state of torch's, numpy's and python's global generators, and of the CUDA ones in use.

    Args:
        devices: Also take the CUDA generators, if CUDA is initialised (never in a worker process).
    """
    state = {"torch": torch_state(), "numpy": numpy_state(), "python": python_state()}
    return state | device_states() if devices else state


def torch_state() -> bytes:
    """The state of torch's generator for the CPU."""
    return torch.random.get_rng_state().numpy().tobytes()


def numpy_state() -> bytes:
    """The state of numpy's global generator: 624 words and the position in them, then the cached normal deviate."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return np.asarray(keys, "<u4").tobytes() + struct.pack("<iid", position, has_gauss, cached)


def python_state() -> bytes:
    """The state of python's global generator: 624 words and the position in them, then the cached normal deviate."""
    version, words, gauss = random.getstate()
    tail = struct.pack("<i?d", version, gauss is not None, gauss if gauss is not None else 0.0)
    return struct.pack(f"<{len(words)}I", *words) + tail


def device_states() -> dict[str, bytes]:
    """The states of the CUDA generators, if CUDA is in use."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    return {f"cuda:{i}": torch.cuda.get_rng_state(i).numpy().tobytes() for i in range(torch.cuda.device_count())}


def restore(state: RandomState) -> None:
    """Put the generators named in ``state`` back to it; the others are left alone."""
    for name, data in state.items():
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


@contextmanager
def preserved() -> Iterator[None]:
    """Leave every generator as it was found."""
    before = capture()
    try:
        yield
    finally:
        restore(before)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
