"""Constants of training's gradient, which derivatives of it must not hold constant.

Training's gradient takes what was computed under ``no_grad`` or came through ``detach`` for a constant: a power
iteration, a running centre, the target of a stop-gradient loss. The next step of the run depends on it all the same, so
a derivative of the gradient goes through it. Here such values keep their graph behind a barrier, which is closed while
training's own gradient is taken, and open for derivatives of it. Hooks on gradients are the reverse: they belong to
training's gradient alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_sgdinf.kernels.intercept import Handler


class Phase:
    """Tells training's own gradient from derivatives of it.

    Attributes:
        first: True while a step runs and while its gradient is taken.
        hooks_act: Hooks on gradients act on training's own; false to see what it is without them.
        hooks: Names of what hooks that acted were registered on.
    """

    def __init__(self) -> None:
        self.first = False
        self.hooks_act = True
        self.hooks: set[str] = set()

    @contextmanager
    def taking_gradient(self) -> Iterator[None]:
        """Be in training's own pass, forwards or backwards, inside."""
        before, self.first = self.first, True
        try:
            yield
        finally:
            self.first = before


class _Hold(torch.autograd.Function):
    """Identity that is flat in training's own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, phase: Phase) -> Tensor:
        ctx.phase = phase
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        return (None if ctx.phase.first else grad), None


def hold(x: Tensor, phase: Phase) -> Tensor:
    """Return a tensor as a constant of training's gradient that varies in derivatives of it."""
    return _Hold.apply(x, phase)  # type: ignore[return-value]


_REAL = (
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__deepcopy__,
    Tensor.__reduce_ex__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
)
"""Calls that want a tensor without a graph: a step makes them of what it has detached."""
_VIEWS = frozenset(getattr(Tensor, name).__get__ for name in ("T", "H", "mT", "mH", "real", "imag"))


class HeldConstants:
    """Holds constants during one differentiated pass.

    Args:
        phase: Opens and closes the barriers.
        lasting: Gives the tensors that outlive the pass: what it writes into them keeps no graph, unless `keep` was
            told of them.
        counted: Loss functions that are counted wherever they are called; their handlers do nothing without gradients.
    """

    def __init__(
        self,
        phase: Phase,
        lasting: Callable[[], Iterable[Tensor]] = tuple,
        counted: Mapping[Callable[..., Any], Handler] | None = None,
    ) -> None:
        self._phase = phase
        self._lasting = lasting
        self._lasting_ids: set[int] | None = None
        self._counted = counted or {}
        self._held: dict[int, Tensor] = {}  # with the tensors themselves, so that no id is given to another
        self.used = False

    def keep(self, x: Tensor) -> Tensor:
        """Register a tensor that needs no barrier: only held values lie behind it."""
        self._held[id(x)] = x
        return x

    def handlers(self) -> Mapping[Callable[..., Any], Handler]:
        """Return handlers for an `Interceptor`."""
        return {
            Tensor.detach: self._detach,
            torch.detach: self._detach,
            Tensor.data.__get__: self._data,  # type: ignore[attr-defined]
            Tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
            Tensor.register_hook: self._hook,
            **dict.fromkeys(_REAL, _without_graph),
        }

    def call(self, handler: Handler | None, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Make a call that the step makes without gradients, so that derivatives of the gradient go through it."""
        written = kwargs.get("out") if "out" in kwargs else args[0] if _in_place(func) else None
        attribute = getattr(func, "__name__", "") in ("__get__", "__set__", "__delete__") and func not in _VIEWS
        if attribute or not _carries((args, kwargs)) or self._outlives(written):
            return func(*args, **kwargs) if handler is None else handler(func, args, kwargs)
        if func in self._counted:
            self._counted[func](func, args, kwargs)
            handler = None
        self.used = True
        target = kwargs.get("out")
        kwargs = {k: v for k, v in kwargs.items() if k != "out" or not isinstance(v, Tensor)}
        own = args[:1] if _in_place(func) else ()
        with torch.enable_grad():
            rest, named = tree_map_only(Tensor, self._behind, (args[len(own) :], kwargs))
            result = func(*own, *rest, **named) if handler is None else handler(func, (*own, *rest), named)
            if isinstance(target, Tensor):
                result = target.copy_(result)
        return tree_map_only(Tensor, self.keep, result)

    def _outlives(self, written: Any) -> bool:
        """Return true if a call writes into a tensor that outlives the pass and is not known to be held."""
        if not isinstance(written, Tensor) or id(written) in self._held:
            return False
        if self._lasting_ids is None:
            self._lasting_ids = {id(x) for x in self._lasting()} - set(self._held)
        return id(written) in self._lasting_ids or id(written._base) in self._lasting_ids

    def _behind(self, x: Tensor) -> Tensor:
        return hold(x, self._phase) if x.requires_grad and id(x) not in self._held else x

    def _detach(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        if not x.requires_grad:
            return func(*args, **kwargs)
        self.used = True
        with torch.enable_grad():
            return self.keep(self._behind(x))

    def _data(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if x.is_leaf and x.requires_grad:  # what is read of a parameter; what is written to it would be no step
            self.used = True
            with torch.enable_grad():
                return self.keep(hold(x, self._phase).clone())
        return func(*args, **kwargs) if x.is_leaf else self._detach(Tensor.detach, (x,), kwargs)

    def _set_data(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        x, value = args
        if x.is_leaf or id(x) not in self._held:
            return func(x, value.detach(), **kwargs)
        with torch.enable_grad():
            x.copy_(value)
        return None

    def _hook(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        x, hook = args
        return func(x, first_only(hook, self._phase, "an activation"))


def first_only(hook: Callable[..., Any], phase: Phase, where: str) -> Callable[..., Any]:
    """Return a hook on gradients that acts on training's own gradient alone.

    Args:
        hook: The user's: of a tensor, given its gradient, or of a module, given it and its gradients.
        phase: Tells training's own gradient.
        where: What it was registered on, for messages.

    Raises:
        UnlinkedHook: From the hook, if what it returns has no graph and could not be differentiated.
    """

    hook = getattr(hook, "of_training", hook)  # of a module that is borrowed twice, once in another precision

    def hooked(*given: Any) -> Any:
        if not (phase.first and phase.hooks_act):
            return None
        phase.hooks.add(where)
        ahead = [(x, x._version, x.grad_fn) for x in given if isinstance(x, Tensor) and x.requires_grad]
        result = hook(*given)
        cut = bool(ahead) and isinstance(result, Tensor) and not result.requires_grad and bool(result.any())
        cut = cut or any(x._version != version and x.grad_fn is node for x, version, node in ahead)
        if cut and torch.is_grad_enabled():
            raise UnlinkedHook(where)
        return result

    hooked.of_training = hook  # type: ignore[attr-defined]
    return hooked


class UnlinkedHook(Exception):
    """A hook changed a gradient without a graph; says what it was registered on."""


def _without_graph(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    x = args[0]
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined]
        plain = x.detach() if x.requires_grad and not (x.is_leaf and func is not Tensor.numpy) else x
    return func(plain, *args[1:], **kwargs)


def _in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name[2:3] == "i" and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def _carries(values: Any) -> bool:
    carries = False

    def look(x: Tensor) -> None:
        nonlocal carries
        carries = carries or x.requires_grad

    tree_map_only(Tensor, look, values)
    return carries
