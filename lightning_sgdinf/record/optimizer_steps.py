"""The optimizer's own steps, seen from its hooks.

Torch's step hooks fire exactly when a step is really taken: not when a gradient scaler skips one, not when the Trainer
merely counts. The pre-hook may come before the forward pass, which Lightning runs inside ``optimizer.step(closure)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf.log import Json, ParamGroup


class OptimizerSteps:
    """Tells of every step that an optimizer takes.

    Args:
        optimizer: Of ``torch.optim`` or derived from it.
        names: Name in the module by ``id`` of the parameter.
        before: Called when a step begins; the closure, if there is one, has not run.
        after: Called right after the update, as the first thing; `used_groups` tells the param groups then.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
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
        self._sizes: list[int] = []
        # Built-in steps never write their options, so what they leave is what they used, even if the closure set it.
        # Other optimizers may count or adapt in their groups; of those only the values before the step are known to be
        # its input.
        self._options_after = type(optimizer).__module__.startswith("torch.optim")
        self.opaque: set[str] = set()  # options recorded by their repr
        self._handles: list[Any] = []
        self.other_hooks = len(getattr(optimizer, "_optimizer_step_post_hooks", ()))

    def attach(self) -> None:
        """Put the hooks on; `remove` takes them off."""
        after_handle = self.optimizer.register_step_post_hook(self._post)
        self._handles.append(after_handle)
        # The user's own post-hooks come later, so that what they change counts as changed by something else.
        hooks = getattr(self.optimizer, "_optimizer_step_post_hooks", None)
        if hooks is not None:
            hooks.move_to_end(after_handle.id, last=False)
        self._handles.append(self.optimizer.register_step_pre_hook(self._pre))

    def remove(self) -> None:
        """Take the hooks off; harmless when done twice."""
        for handle in self._handles:
            handle.remove()

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
        if self._plain is None or self._plain != live or self._sizes != [len(g["params"]) for g in live]:
            names = self._names()
            self._groups = tuple(
                ParamGroup(
                    params=tuple(names.get(id(p), "") for p in group["params"]),
                    options={str(k): self._option(str(k), v) for k, v in group.items() if k not in _NOT_OPTIONS},
                )
                for group in live
            )
            # Groups whose options cannot change in place are known again by comparing.
            plain = all(_immutable(v) for group in live for k, v in group.items() if k not in _NOT_OPTIONS)
            self._plain = [dict(group) for group in live] if plain else None
            self._sizes = [len(group["params"]) for group in live]
        return self._groups

    def _pre(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        self._depth += 1  # a step that calls the step of a base class fires the hooks again
        if self._depth == 1:
            self._used = self.read_groups()
            self._before()

    def _post(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        self._depth -= 1
        if self._depth == 0:
            self._after()

    def used_groups(self) -> tuple[ParamGroup, ...]:
        """Return the param groups that the step used that was just taken."""
        return self.read_groups() if self._options_after else self._used

    def _option(self, key: str, value: Any) -> Json:
        try:
            return as_json(value)
        except TypeError:
            self.opaque.add(key)
            return repr(value)


_NOT_OPTIONS = ("params", "param_names")


def _immutable(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, type(None))) or (
        isinstance(value, tuple) and all(map(_immutable, value))
    )


def as_json(value: Any) -> Json:
    """Return an option as a JSON value: tuples become lists, tensors of one element numbers.

    Raises:
        TypeError: If there is no such value.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, (tuple, list)):
        return [as_json(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    raise TypeError(f"{type(value).__qualname__} has no JSON value")


def has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Tell if any parameter of the optimizer has a gradient."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
