"""The optimizer of a recorded run, made anew from what the log says of it.

A log may come from anybody. So nothing is imported because a file says so, what is no optimizer is not called, and an
optimizer is given no more than its constructor has names for, plain values all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_sgdinf.errors import UnknownOptimizerError
from lightning_sgdinf.log import ParamGroup
from lightning_sgdinf.plain_text import printable

_NOTES = {
    "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "name", "param_names", "lr_scale",
}  # fmt: skip
"""Entries that schedulers and loggers leave in the groups of any optimizer; none reads them."""


class RecordedOptimizer:
    """The class of a recorded optimizer.

    Args:
        path: Its qualified name, as the log's header has it.

    Raises:
        UnknownOptimizerError: No class derived from ``torch.optim.Optimizer`` of that name has been imported.
    """

    def __init__(self, path: str) -> None:
        self._path = printable(path)
        self._defaults: Mapping[str, Any] = {}  # once it was made
        self._kind = _imported(path)
        self._names = {
            name
            for kind in self._kind.__mro__
            if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
            for name in inspect.signature(kind.__init__).parameters
        } - {"self", "params"}

    @property
    def takes_sparse(self) -> bool:
        """Return True if it takes sparse gradients alone."""
        return issubclass(self._kind, torch.optim.SparseAdam)

    def make(self, groups: Sequence[tuple[Sequence[torch.nn.Parameter], ParamGroup]]) -> torch.optim.Optimizer:
        """Return an optimizer.

        Args:
            groups: Parameters and recorded options of each of its groups.

        Raises:
            UnknownOptimizerError: It does not take the options.
        """
        first = groups[0][1].options
        required = {"lr": first["lr"]} if "lr" in first and "lr" in self._names else {}  # even if every group has one
        given = [{"params": list(params), **self.options(group)} for params, group in groups]
        kind: Any = self._kind
        try:
            optimizer = kind(given, **required)
        except Exception as error:
            raise UnknownOptimizerError(
                f"{self._path} does not take the options that the log has ({type(error).__name__}: "
                f"{printable(str(error)):.200}); use the release of it that the run used, or restore a copy of the log"
            ) from error
        self._defaults = optimizer.defaults
        for group in given:
            self._check_kinds(group)
        return optimizer

    def options(self, group: ParamGroup) -> dict[str, Any]:
        """Return the recorded hyper-parameters of a group that the constructor has names for.

        Raises:
            UnknownOptimizerError: One is neither a number, a word, nor a list of such; or an optimizer that is not
                torch's has one that its constructor has not.
        """
        kept: dict[str, Any] = {}
        for name, value in group.options.items():
            if name == "params" or not _is_plain(value):
                raise UnknownOptimizerError(
                    f"the option {printable(name)} of the recorded optimizer is {value!r:.80}, expected a number, a "
                    "word, or a list of such; train with an optimizer whose options are plain values"
                )
            if name in self._names:
                kept[name] = tuple(value) if isinstance(value, list) else value
            elif name not in _NOTES and not self._kind.__module__.startswith("torch.optim."):
                raise UnknownOptimizerError(
                    f"the log has an option {printable(name)} for {self._path}, whose constructor has none of that "
                    "name; give the constructor an argument of that name"
                )
        self._check_kinds(kept)
        return kept

    def _check_kinds(self, options: Mapping[str, Any]) -> None:
        for name, default in self._defaults.items():
            if name in options and _sort(default) != _sort(options[name]) and None not in (default, options[name]):
                raise UnknownOptimizerError(
                    f"the option {name} of the recorded optimizer is {options[name]!r:.80}, expected a value such as "
                    f"{default!r:.80}; restore a copy of the log"
                )


def _imported(path: str) -> type[torch.optim.Optimizer]:
    known, named = [torch.optim.Optimizer], None
    while known:
        kind = known.pop()
        known += kind.__subclasses__()
        if f"{kind.__module__}.{kind.__qualname__}" == path:
            named = kind
    if named is None:
        raise UnknownOptimizerError(
            f"the run used the optimizer {printable(path)}, which is not here: no such class derived from "
            "torch.optim.Optimizer has been imported. Import the module that defines it before; a log never does that "
            "by itself"
        )
    return named


def _sort(value: Any) -> str:
    """Return the sort of an option: a word, a list of so many, or a number; a tensor is one."""
    if isinstance(value, str):
        return "word"
    return f"list of {len(value)}" if isinstance(value, (list, tuple)) else "number"


def _is_plain(value: Any) -> bool:
    return all(
        type(v) in (bool, int, float, str, type(None)) for v in (value if isinstance(value, (list, tuple)) else [value])
    )
