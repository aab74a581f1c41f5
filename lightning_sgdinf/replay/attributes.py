"""Plain attributes of the module, set to what they were when a recorded batch was taken.

Hooks are not run again in replay: what they and callbacks set between steps is in the record, number by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import CONTINUED, Json, MicroBatch, Trajectory, decode_attribute

_MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class _Fit:
    """The steps of one fit: a run that was resumed has several.

    Attributes:
        first_step: Number of its first step.
        first: Every attribute at its first batch.
        names: Those that changed.
    """

    first_step: int
    first: Mapping[str, Json]
    names: frozenset[str]


class RecordedAttributes:
    """The attributes that changed while a run was recorded.

    Args:
        log: The record.
        device: Where small tensors go.
        dtype: Of floating-point tensors; ``None`` as recorded.
    """

    def __init__(self, log: Trajectory, device: torch.device) -> None:
        self._device = device
        resumed: Any = log.header.extra.get(CONTINUED) or []
        starts = [0, *(entry["step"] for entry in resumed if 0 < entry["step"] < len(log))]
        self._fits: list[_Fit] = []
        for start, stop in zip(starts, [*starts[1:], len(log)], strict=True):
            first, last = log.step(start).micro_batches, log.step(stop - 1).micro_batches
            if first and last:
                one_step = start == stop - 1
                self._fits.append(_Fit(start, first[0].attributes, frozenset() if one_step else _names(last)))
        self.last = log.step(len(log) - 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the paths of what changed, sorted."""
        return tuple(sorted(frozenset().union(*(fit.names for fit in self._fits))))

    def restore(self, module: nn.Module, index: int, micro: MicroBatch, dtype: torch.dtype | None) -> None:
        """Set what changed to what it was at a pass.

        Args:
            module: The borrowed module.
            index: Number of the step.
            micro: The pass; one that is none of the record's leaves all as it is.
            dtype: Of floating-point tensors; ``None`` as recorded.
        """
        names = self.names
        if not names or not (micro.draws or micro.attributes):
            return
        fit = [fit for fit in self._fits if fit.first_step <= index][-1]
        for path in names:
            document = micro.attributes.get(path, fit.first.get(path, _MISSING))
            owner, name = owner_of(module, path)
            if owner is None or document is _MISSING:
                continue
            if isinstance(document, dict) and "other" in document:
                owner.pop(name, None)  # its value is not known; reading it is an error with its name
            else:
                owner[name] = decode_attribute(document, device=self._device, dtype=dtype)

    @contextmanager
    def lent(self, module: nn.Module) -> Iterator[None]:
        """Give the module back with the attributes that it had."""
        before = [
            (owner, name, owner.get(name, _MISSING))
            for owner, name in map(lambda p: owner_of(module, p), self.names)
            if owner is not None
        ]
        try:
            yield
        finally:
            for owner, name, value in before:
                if value is _MISSING:
                    owner.pop(name, None)
                else:
                    owner[name] = value

    @property
    def varying(self) -> tuple[str, ...]:
        """Return the paths of what changed from step to step, as far as the ends of the fits tell."""
        last = self.last.micro_batches[-1]
        return tuple(
            path
            for path in self.names
            if path in last.carried or any(fit.first.get(path) != last.attributes.get(path) for fit in self._fits)
        )

    @property
    def held(self) -> tuple[str, ...]:
        """Return the paths of numbers that hooks or callbacks changed between steps, which replay holds as recorded."""
        last = self.last.micro_batches[-1]
        numbers = {
            p for p, v in last.attributes.items() if isinstance(v, float) or (isinstance(v, dict) and "other" not in v)
        }
        return tuple(path for path in self.varying if path in numbers and path not in last.carried)

    def unknown(self) -> dict[str, str]:
        """Return the attributes that changed and whose values are not recorded, with what they are."""
        described: dict[str, str] = {}
        for micro in self.last.micro_batches:
            for path, document in micro.attributes.items():
                if isinstance(document, dict) and "other" in document:
                    described[path] = str(document["other"])
        return described


def _names(micros: tuple[MicroBatch, ...]) -> frozenset[str]:
    return frozenset(path for micro in micros for path in micro.attributes)


@contextmanager
def naming_attributes(module: nn.Module, attributes: RecordedAttributes | None, index: int) -> Iterator[None]:
    """Say why a module lacks an attribute that a step reads.

    Args:
        module: The borrowed module.
        attributes: What changed while it was recorded.
        index: Number of the step.

    Raises:
        UnsupportedRunError: In the place of torch's own error.
    """
    try:
        yield
    except AttributeError as error:
        name = str(error).rpartition("attribute ")[2].strip("'")
        kinds = {f"'{type(part).__name__}' object" for part in module.modules()}
        if isinstance(error, UnsupportedRunError) or not any(kind in str(error) for kind in kinds):
            raise
        known = {} if attributes is None else attributes.unknown()
        unknown = [what for path, what in known.items() if path.rpartition(".")[2] == name]
        if unknown:
            reason = f"a {unknown[0]} that changes between steps and whose values are not recorded"
            way_out = "Compute it within the step; if it is to last, as a buffer that training_step itself moves"
        else:
            reason = "which this module does not have: a hook made it in training"
            way_out = "Pass the very module that was trained"
        raise UnsupportedRunError(f"step {index}: the step reads self.{name}, {reason}. {way_out}.") from error


def owner_of(module: nn.Module, path: str) -> tuple[dict[str, Any] | None, str]:
    """Return the dictionary that an attribute is in, and its name there; ``None`` if the module has no such part."""
    *parts, name = path.split(".")
    owner: Any = module
    for part in parts:
        if type(owner).__name__ == "OptimizedModule":
            owner = owner._orig_mod
        owner = (
            owner._modules.get(part, vars(owner).get(part))
            if isinstance(owner, nn.Module)
            else getattr(owner, part, None)
        )
        if owner is None:
            return None, name
    if type(owner).__name__ == "OptimizedModule":
        owner = owner._orig_mod
    return vars(owner), name
