"""Read the generators' states again and again at little cost.

Recording reads them three times per batch, and between two readings most streams have not moved. Encoding a state costs
about 0.15 ms, so a watch first looks whether it has to: an unchanged stream is the same ``bytes`` object as the last
time, which also lets a writer recognise it by identity.

Python's and numpy's Mersenne twisters hand out their states as hundreds of boxed integers. The watch compares the
memory they lie in instead, and only after it has seen, each time it encodes a state, that this memory holds what the
public call returns; where it does not (another interpreter, another bit generator), it encodes every time.
"""

from __future__ import annotations

from lightning_sgdinf import random_state


class RandomWatch:
    """Reads the state of torch's, numpy's and python's global generators, and of the CUDA ones in use.

    Pickled or deep-copied it starts afresh: what it knows belongs to its process.
    """

    def __init__(self) -> None:
        self._python_memory: bytes | None = None
        self._numpy_memory: bytes | None = None
        self._known: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[type[RandomWatch], tuple[()]]:
        return RandomWatch, ()

    def capture(self, *, devices: bool = True) -> dict[str, bytes]:
        """Return the states as `lightning_sgdinf.random_state.capture` gives them; unchanged ones are the same objects
        as before.

        Args:
            devices: Also read the CUDA generators, if CUDA is initialised (never in a worker process).
        """
        state = {
            "torch": self._same("torch", random_state.torch_state()),
            "numpy": self._numpy(),
            "python": self._python(),
        }
        if devices:
            for name, data in random_state.device_states().items():
                state[name] = self._same(name, data)
        return state

    def _same(self, name: str, data: bytes) -> bytes:
        """Return the object of last time, if it was equal."""
        if self._known.get(name) != data:
            self._known[name] = data
        return self._known[name]

    def _python(self) -> bytes:
        memory = random_state.python_memory()
        if memory is not None and memory == self._python_memory:
            return self._known["python"]
        data = self._same("python", random_state.python_state())
        self._python_memory = memory if memory == data[: random_state.TWISTER_BYTES] else None
        return data

    def _numpy(self) -> bytes:
        memory = random_state.numpy_memory()
        # A cached normal deviate lives outside the twister. Where there was none, none can have come without moving it.
        if memory is not None and memory == self._numpy_memory:
            return self._known["numpy"]
        data = self._same("numpy", random_state.numpy_state())
        size = random_state.TWISTER_BYTES
        self._numpy_memory = memory if memory == data[:size] and data[size : size + 4] == bytes(4) else None
        return data
