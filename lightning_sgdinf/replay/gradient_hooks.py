"""Hooks on gradients that the user registered on parameters and modules, while the module is borrowed.

Such a hook is part of how a run made its gradient, so it acts when that is taken again; in derivatives of the gradient
it has no place. One that acts after a gradient was summed up (``register_post_accumulate_grad_hook``) is not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.kernels import Phase, first_only


@contextmanager
def hooks_of_training(module: nn.Module, phase: Phase) -> Iterator[None]:
    """Let the hooks on gradients act in training's own gradient alone inside.

    Args:
        module: The borrowed module.
        phase: Tells training's own gradient from derivatives of it.

    Raises:
        UnsupportedRunError: A hook acts on gradients that were summed up.
    """
    changed: list[tuple[dict[int, Any], dict[int, Any]]] = []
    try:
        for name, parameter in module.named_parameters():
            if getattr(parameter, "_post_accumulate_grad_hooks", None):
                raise UnsupportedRunError(POST_ACCUMULATE.format(name=name))
            _wrap(parameter._backward_hooks, f"the parameter {name}", phase, changed)
        for name, part in module.named_modules():
            where = f"the module {name or type(part).__name__}"
            _wrap(part._backward_hooks, where, phase, changed)  # type: ignore[arg-type]
            _wrap(part._backward_pre_hooks, where, phase, changed)  # type: ignore[arg-type]
        yield
    finally:
        for hooks, own in reversed(changed):
            hooks.update({key: hook for key, hook in own.items() if key in hooks})


POST_ACCUMULATE = (
    "the parameter {name} has a hook that acts on its gradient once that is summed up "
    "(register_post_accumulate_grad_hook), which replay does not repeat. Use register_hook for what is done to a "
    "gradient, and let the Trainer take the steps"
)


def _wrap(hooks: Any, where: str, phase: Phase, changed: list[tuple[dict[int, Any], dict[int, Any]]]) -> None:
    if not hooks:
        return
    own = dict(hooks)
    changed.append((hooks, own))
    hooks.update({key: first_only(hook, phase, where) for key, hook in own.items()})
