"""The optimizer's own steps, seen from its hooks.

Torch's step hooks fire exactly when a step is really taken: not when a gradient scaler skips one, not when the Trainer
merely counts. The pre-hook may come before the forward pass, which Lightning runs inside ``optimizer.step(closure)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.log import Json, ParamGroup
from lightning_sgdinf.plain_text import encodable
from lightning_sgdinf.record.guard import Guard


class OptimizerSteps:
    """Tells of every step that an optimizer takes.

    Args:
        optimizer: Of ``torch.optim`` or derived from it.
        guard: Runs what its hooks call.
        names: Name in the module by ``id`` of the parameter.
        before: Called when a step begins; the closure, if there is one, has not run.
        after: Called right after the update, as the first thing; `used_groups` tells the param groups then.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        guard: Guard,
        names: Callable[[], Mapping[int, str]],
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        self.optimizer = optimizer
        self._names = names
        self._before = before
        self._after = after
        self._depth = 0
        self._used: tuple[ParamGroup, ...] = ()
        self._groups: tuple[ParamGroup, ...] = ()
        self._plain: list[dict[str, Any]] | None = None  # the groups that self._groups tells of
        self._members: list[list[int]] = []  # ids of the groups' parameters
        # Built-in steps never write their options, so what they leave is what they used, even if the closure set it.
        # Other optimizers may count or adapt in their groups; of those only the values before the step are known to be
        # its input.
        self._options_after = type(optimizer).__module__.startswith("torch.optim")
        self.opaque: set[str] = set()  # options recorded by their repr
        self._handles: list[Any] = []
        self._hooks = (lambda *_: guard.run(self._post), lambda *_: guard.run(self._pre))
        self.other_hooks = len(getattr(optimizer, "_optimizer_step_post_hooks", ()))

    def attach(self) -> None:
        """Put the hooks on; `remove` takes them off."""
        after_handle = self.optimizer.register_step_post_hook(self._hooks[0])
        self._handles.append(after_handle)
        # The user's own post-hooks come later, so that what they change counts as changed by something else.
        hooks = getattr(self.optimizer, "_optimizer_step_post_hooks", None)
        if hooks is not None:
            hooks.move_to_end(after_handle.id, last=False)
        self._handles.append(self.optimizer.register_step_pre_hook(self._hooks[1]))

    def remove(self) -> None:
        """Take the hooks off; harmless when done twice."""
        for handle in self._handles:
            handle.remove()
        for name in ("_optimizer_step_post_hooks", "_optimizer_step_pre_hooks"):
            hooks = getattr(self.optimizer, name, {})
            for key in [key for key, hook in hooks.items() if any(hook is own for own in self._hooks)]:
                del hooks[key]  # put on, but interrupted before its handle was kept

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell of another optimizer's steps from now on."""
        self.remove()
        self.optimizer, self._plain = optimizer, None
        self.attach()

    def forget(self) -> None:
        """Forget a step that an exception has ended before its update."""
        self._depth = 0

    @property
    def running(self) -> bool:
        """True while the optimizer is inside ``step``."""
        return self._depth > 0

    def read_groups(self) -> tuple[ParamGroup, ...]:
        """Return the param groups as they stand; the same objects as before if nothing changed."""
        live = self.optimizer.param_groups
        members = [[id(p) for p in group["params"]] for group in live]
        options = [{k: v for k, v in group.items() if k not in _NOT_OPTIONS} for group in live]
        if self._plain is None or self._members != members or self._plain != options:
            names = self._names()
            self._groups = tuple(
                ParamGroup(
                    params=tuple(names[i] for i in ids if i in names),
                    options={encodable(str(k)): self._option(encodable(str(k)), v) for k, v in own.items()},
                )
                for ids, own in zip(members, options, strict=True)
            )
            # Groups whose options cannot change in place are known again by comparing.
            self._plain = options if all(_immutable(v) for own in options for v in own.values()) else None
            self._members = members
        return self._groups

    def _pre(self) -> None:
        self._depth += 1  # a step that calls the step of a base class fires the hooks again
        if self._depth == 1:
            self._used = self.read_groups()
            self._before()

    def _post(self) -> None:
        self._depth = max(self._depth - 1, 0)  # watched only since the step began, if another optimizer came in
        if self._depth == 0:
            self._after()

    def used_groups(self) -> tuple[ParamGroup, ...]:
        """Return the param groups that the step used that was just taken."""
        return self.read_groups() if self._options_after else self._used

    def _option(self, key: str, value: Any) -> Json:
        try:
            plain = as_json(value)
            if isinstance(value, (bool, float, np.generic)) or len(json.dumps(plain)) <= _LARGEST_OPTION:
                return plain
        except (TypeError, ValueError, RecursionError):  # of integers with thousands of digits, too
            pass
        self.opaque.add(key)
        try:
            return encodable(repr(value)[:_LARGEST_OPTION])
        except Exception:  # of a class of somebody's own
            return type(value).__qualname__


_LARGEST_OPTION = 1 << 16
_NOT_OPTIONS = ("params", "param_names")


def _immutable(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, np.generic, type(None))) or (
        isinstance(value, tuple) and all(map(_immutable, value))
    )


def as_json(value: Any) -> Json:
    """Return an option as a JSON value: tuples become lists, numpy's numbers and tensors of one element numbers.

    Raises:
        TypeError: If there is no such value.
    """
    if isinstance(value, str) and encodable(value) != value:
        raise TypeError("half a character has no JSON value")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return as_json(value.item())
    if (isinstance(value, Tensor) and value.numel() == 1) or (isinstance(value, np.ndarray) and value.size == 1):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [as_json(v) for v in value]
    if isinstance(value, Mapping):
        return {encodable(str(k)): as_json(v) for k, v in value.items()}
    raise TypeError(f"{type(value).__qualname__} has no JSON value")


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the gradients that the optimizer's parameters have."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def without_gradient(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of the optimizer's parameters that have no gradient.

    Args:
        optimizer: Has just stepped.
        names: Name in the module by ``id`` of the parameter.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is None]
    return tuple(names[id(p)] for p in parameters if id(p) in names)
