"""A run whose sub-modules were compiled, seen with the names of a module where others are, and the other way round.

``torch.compile`` puts a module into another one, and ``_orig_mod`` into the names of all that is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log.records import Header, Step
from lightning_sgdinf.log.seen import SeenLog
from lightning_sgdinf.log.trajectory import Trajectory
from lightning_sgdinf.state import ModelState

_WRAPPED = "_orig_mod"


def uncompiled(name: str) -> str:
    """Return the name that a parameter, buffer or sub-module has in a module of which nothing is compiled."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


class OtherNames(SeenLog):
    """A recorded run with the names of another module, of which other parts are compiled.

    Args:
        log: The record.
        names: Of all parameters, buffers and sub-modules of the module.
    """

    def __init__(self, log: Trajectory, names: Collection[str]) -> None:
        super().__init__(log)
        self._names = {uncompiled(name): name for name in sorted(names, key=len)}

    @property
    def header(self) -> Header:
        """See `Trajectory`."""
        header = self._log.header
        return replace(header, parameters=tuple((self._name(n), s, d) for n, s, d in header.parameters))

    @property
    def average(self) -> Mapping[str, Tensor] | None:
        """See `Trajectory`."""
        average = self._log.average
        return None if average is None else {self._name(n): v for n, v in average.items()}

    def state(self, index: int) -> ModelState:
        """See `Trajectory`."""
        state = self._log.state(index)
        return ModelState(
            params={self._name(n): v for n, v in state.params.items()},
            buffers={self._name(n): v for n, v in state.buffers.items()},
            optimizer={self._name(n): v for n, v in state.optimizer.items()},
        )

    def state_checksum(self, index: int) -> int | None:
        """Refuse: checksums are over names, too, so states that are rebuilt could not be compared.

        Raises:
            UnsupportedRunError: Always.
        """
        raise UnsupportedRunError(
            f"state {index} is not in the log and has to be rebuilt, which cannot be verified: the module has other "
            "compiled parts than the one that was trained. Pass it compiled as it was, or record with "
            "keep='every_step'."
        )

    def _name(self, name: str) -> str:
        return self._names.get(uncompiled(name), name)

    def _seen(self, step: Step) -> Step:
        groups = tuple(replace(g, params=tuple(map(self._name, g.params))) for g in step.groups)
        modes = {uncompiled(name) for name in step.eval_modules}
        present = tuple(name for plain, name in self._names.items() if plain in modes)
        both = (*present, *(name for name in step.eval_modules if name not in present))
        idle = step.without_gradient
        idle = None if idle is None else tuple(map(self._name, idle))
        return replace(step, groups=groups, eval_modules=both, without_gradient=idle)


def with_names_of(log: Trajectory, names: Collection[str]) -> Trajectory:
    """Return a record with a module's names, where only compiled parts make the difference.

    Args:
        log: The record.
        names: Of all parameters, buffers and sub-modules of the module.
    """
    recorded = [name for name, _, _ in log.header.parameters]
    plain = {uncompiled(name) for name in names}
    if set(recorded) <= set(names) or not {uncompiled(name) for name in recorded} <= plain:
        return log
    return OtherNames(log, names)
