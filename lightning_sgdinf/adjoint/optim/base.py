r"""Optimizers as pure functions, with their transposed derivatives.

An update rule maps parameters, gradient and optimizer state of one step to the next ones,
:math:`(\theta', m') = \Phi(\theta, g, m)`, and pulls an adjoint back through that map:

.. math:: carry = (\partial\Phi / \partial(\theta, m))^T u, \qquad push = (\partial\Phi / \partial g)^T u.

Every optimizer that has a rule works element by element, so a rule is given whole stretches of the parameter vector at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lightning_sgdinf.errors import UnknownOptimizerError

Options = Mapping[str, Any]
"""Entries of a param group but for ``params``."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """An adjoint pulled back through one update.

    Attributes:
        params: ``carry`` of the parameters, ``[Q, n]``.
        state: ``carry`` of the optimizer's state by key, ``[Q, n]``; keys that do not matter are absent.
        push: ``push``, ``[Q, n]``.
    """

    params: Tensor
    state: Mapping[str, Tensor]
    push: Tensor


@dataclass(frozen=True, slots=True)
class Update:
    """One update taken, ready to be pulled back through.

    Attributes:
        params: :math:`\\theta'`, ``[n]``.
        state: :math:`m'` by key: ``[n]`` or a scalar.
        pull: From the adjoints of ``params`` (``[Q, n]``) and of ``state`` (by key) to `Pulled`.
    """

    params: Tensor
    state: Mapping[str, Tensor]
    pull: Callable[[Tensor, Mapping[str, Tensor]], Pulled]


class UpdateRule(Protocol):
    """One optimizer's map.

    Attributes:
        needs_gradient: True if `Update.pull` depends on the value of the gradient.

    A rule whose optimizer leaves alone what a sparse gradient does not have says so by an attribute ``lazy = True``,
    and is given the other elements alone.
    """

    needs_gradient: bool

    def take(self, params: Tensor, grad: Tensor, state: Mapping[str, Tensor], options: Options) -> Update:
        """Take one step.

        Args:
            params: Parameters before the step, ``[n]``.
            grad: Gradient, ``[n]``, clipped if the run clips.
            state: Optimizer state before the step by key (``[n]`` or a scalar); empty before the first one.
            options: Hyper-parameters of the step.
        """
        ...


_RULES: dict[str, Callable[[], UpdateRule]] = {}


def register_rule(optimizer: str, rule: Callable[[], UpdateRule]) -> None:
    """Make a rule known for an optimizer.

    Args:
        optimizer: Qualified class name as in the log's header, e.g. ``"torch.optim.sgd.SGD"``.
        rule: Makes the rule.
    """
    _RULES[optimizer] = rule


def known_optimizers() -> tuple[str, ...]:
    """Return the qualified class names of optimizers that have a rule."""
    return tuple(sorted(_RULES))


def rule_for(optimizer: str) -> UpdateRule:
    """Return the rule of a recorded optimizer.

    Raises:
        UnknownOptimizerError: If there is none; lists those that have one.
    """
    if optimizer not in _RULES:
        raise UnknownOptimizerError(
            f"no update rule for {optimizer}; known are {', '.join(n.rsplit('.', 1)[1] for n in known_optimizers())}. "
            "Rprop and sign-based optimizers have none because their steps do not depend on an example's weight, "
            "LBFGS, Adafactor and Muon because theirs are not differentiable element by element. An optimizer of your "
            "own that works element by element can be added with lightning_sgdinf.register_rule."
        )
    return _RULES[optimizer]()
