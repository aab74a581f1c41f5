r"""Adam, AMSGrad and AdamW as ``torch.optim`` does them, and their adjoint in closed form.

With :math:`\sigma = -1` for ``maximize`` and 1 otherwise, weight decay :math:`\lambda`, learning rate :math:`\eta`, and
:math:`c_i = 1 - \beta_i^t` the corrections of the bias,

.. math::
    a = \sigma g + \lambda\theta, \quad m' = \beta_1 m + (1 - \beta_1) a, \quad v' = \beta_2 v + (1 - \beta_2) a^2,
    \quad d = \sqrt{w / c_2} + \epsilon, \quad \theta' = \theta - \frac{\eta}{c_1} \frac{m'}{d},

with :math:`w = v'`, or for AMSGrad :math:`w = x' = \max(x, v')`. Decoupled decay (AdamW) is
:math:`(1 - \eta\lambda)\theta` in the place of :math:`\theta` in the last formula, and not in :math:`a`. Backwards,
with adjoints :math:`u, \mu, \nu, \xi` of :math:`\theta', m', v', x'`:

.. math::
    M = \mu - \frac{\eta}{c_1 d} u, \quad W = \frac{\eta\, m'}{2 c_1 d^2 \sqrt{c_2 w}} u, \quad N = \nu + W, \quad
    A = (1 - \beta_1) M + 2 (1 - \beta_2) a N,

    push = \sigma A, \quad carry_\theta = u + \lambda A \text{ or } (1 - \eta\lambda) u, \quad
    carry_m = \beta_1 M, \quad carry_v = \beta_2 N.

For AMSGrad :math:`\xi + W` goes to :math:`N` where :math:`v'` is the larger, to :math:`carry_x` where :math:`x` is,
half each where they are equal. At a second moment of exactly zero (pixels that are never lit) :math:`W` is ``inf * 0``,
whose limit is zero.

Differentiating torch's own step gives the same, some five times slower where there are millions of elements; it is what
this is compared with. Elements are pulled back some at a time, which stay in the processor's cache.

References:
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 (arXiv:1412.6980); Reddi, Kale and Kumar, "On
    the Convergence of Adam and Beyond", ICLR 2018; Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR
    2019 (arXiv:1711.05101).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.optim.base import Options, Pulled, Update, register_rule

FIRST, SECOND, LARGEST = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
PART = 1 << 16
"""Elements that are pulled back at once."""

_Slopes: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class _Settings:
    """The numbers of one step.

    Attributes:
        rate: Learning rate.
        betas: Of the two moments.
        eps: Added to the denominator.
        decay: Weight decay.
        decoupled: It acts on the parameters, not on the gradient.
        sign: -1 to maximize.
        amsgrad: The largest second moment so far is divided by.
        step: Number of the step, from 1.
    """

    rate: float
    betas: tuple[float, float]
    eps: float
    decay: float
    decoupled: bool
    sign: float
    amsgrad: bool
    step: float

    @property
    def corrections(self) -> tuple[float, float]:
        """Return :math:`c_1` and :math:`c_2`."""
        return 1 - self.betas[0] ** self.step, 1 - self.betas[1] ** self.step


@dataclass(frozen=True, slots=True)
class _Before:
    """The start of a step: parameters, gradient, moments."""

    params: Tensor
    grad: Tensor
    first: Tensor | None
    second: Tensor | None
    largest: Tensor | None

    def part(self, here: slice) -> _Before:
        """Return some of the elements."""
        moments = (None if v is None else v[here] for v in (self.first, self.second, self.largest))
        return _Before(self.params[here], self.grad[here], *moments)


class AdamRule:
    """`UpdateRule` of ``torch.optim.Adam`` and ``AdamW``, with AMSGrad, weight decay and maximize.

    Args:
        decoupled: The weight decay is decoupled, where the options do not say.
    """

    needs_gradient = True

    def __init__(self, *, decoupled: bool = False) -> None:
        self._decoupled = decoupled

    def take(self, params: Tensor, grad: Tensor, state: Mapping[str, Tensor], options: Options) -> Update:
        """See `UpdateRule.take`; the forward part does torch's operations in torch's order."""
        taken = state.get("step")
        settings = self._settings(options, 1.0 if taken is None else float(taken) + 1)
        before = _Before(params, grad, state.get(FIRST), state.get(SECOND), state.get(LARGEST))
        direction = _direction(before, settings)
        first, second, largest, denominator = _moments(before, direction, settings)
        theta = params.mul(1 - settings.rate * settings.decay) if settings.decay and settings.decoupled else params
        after = torch.addcdiv(theta, first, denominator, value=-settings.rate / settings.corrections[0])
        moments = {"step": _first_count() if taken is None else taken + 1, FIRST: first, SECOND: second}
        if LARGEST in state or settings.amsgrad:
            moments[LARGEST] = largest if settings.amsgrad else state[LARGEST]

        def pull(u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
            return _pull(before, settings, u, adjoint)

        return Update(after, moments, pull)

    def _settings(self, options: Options, step: float) -> _Settings:
        first, second = options["betas"]
        return _Settings(
            rate=float(options["lr"]),
            betas=(float(first), float(second)),
            eps=float(options["eps"]),
            decay=float(options.get("weight_decay", 0.0)),
            decoupled=bool(options.get("decoupled_weight_decay", self._decoupled)),
            sign=-1.0 if options.get("maximize") else 1.0,
            amsgrad=bool(options.get("amsgrad")),
            step=step,
        )


def _first_count() -> Tensor:
    """Return the step count after the first step, as torch keeps it."""
    return torch.tensor(1.0, dtype=torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32)


def _direction(before: _Before, settings: _Settings) -> Tensor:
    """Return :math:`a`."""
    direction = -before.grad if settings.sign < 0 else before.grad
    if settings.decay and not settings.decoupled:
        direction = direction.add(before.params, alpha=settings.decay)
    return direction


def _moments(before: _Before, direction: Tensor, settings: _Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return :math:`m'`, :math:`v'`, :math:`w` and :math:`d`."""
    beta1, beta2 = settings.betas
    zero = torch.zeros_like(direction) if before.first is None or before.second is None else direction
    first = torch.lerp(zero if before.first is None else before.first, direction, 1 - beta1)
    second = (zero if before.second is None else before.second).mul(beta2)
    second.addcmul_(direction, direction, value=1 - beta2)
    largest = second
    if settings.amsgrad:
        largest = torch.maximum(torch.zeros_like(second) if before.largest is None else before.largest, second)
    return first, second, largest, (largest.sqrt() / settings.corrections[1] ** 0.5).add_(settings.eps)


def _slopes(before: _Before, settings: _Settings) -> _Slopes:
    """Return what the adjoint of some elements is multiplied with.

    That is :math:`\\eta / (c_1 d)`, that of :math:`W`, :math:`2 (1 - \\beta_2) a`, and for AMSGrad the part of the
    largest second moment that is the present one's.
    """
    direction = _direction(before, settings)
    first, second, largest, denominator = _moments(before, direction, settings)
    of_first = (settings.rate / settings.corrections[0]) / denominator
    root = largest.sqrt().mul_(2 * settings.corrections[1] ** 0.5)
    of_largest = (of_first * first).div_(denominator).div_(root)
    of_largest.masked_fill_(largest == 0, 0.0)
    present = None
    if settings.amsgrad:
        earlier = torch.zeros_like(second) if before.largest is None else before.largest
        present = (second > earlier).to(second).add_((second == earlier).to(second), alpha=0.5)
    return of_first, of_largest, direction.mul(2 * (1 - settings.betas[1])), present


def _pull(before: _Before, settings: _Settings, u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
    """Pull an adjoint back, some elements at a time."""
    size = u.shape[1]
    if size <= PART:
        return _pull_part(before, settings, u, adjoint)
    carry, push = torch.empty_like(u), torch.empty_like(u)
    carried: dict[str, Tensor] = {}
    for start in range(0, size, PART):
        here = slice(start, start + PART)
        pulled = _pull_part(before.part(here), settings, u[:, here], {k: v[:, here] for k, v in adjoint.items()})
        carry[:, here], push[:, here] = pulled.params, pulled.push
        for key, value in pulled.state.items():
            if key not in carried:
                carried[key] = torch.empty_like(u)
            carried[key][:, here] = value
    return Pulled(carry, carried, push)


def _pull_part(before: _Before, settings: _Settings, u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
    of_first, of_largest, of_square, present = _slopes(before, settings)
    of_m = u * -of_first
    if FIRST in adjoint:
        of_m += adjoint[FIRST]
    of_w = u * of_largest
    carried: dict[str, Tensor] = {}
    if present is not None:
        if LARGEST in adjoint:
            of_w += adjoint[LARGEST]
        if before.largest is not None:
            carried[LARGEST] = of_w * (1 - present)
        of_w = of_w * present
    elif LARGEST in adjoint and before.largest is not None:
        carried[LARGEST] = adjoint[LARGEST]  # a schedule may switch AMSGrad off for a while; the largest then rests
    of_v = of_w + adjoint[SECOND] if SECOND in adjoint else of_w
    of_a = (of_m * (1 - settings.betas[0])).addcmul_(of_square, of_v)
    if before.first is not None:
        carried |= {FIRST: of_m.mul_(settings.betas[0]), SECOND: of_v * settings.betas[1]}
    carry = u
    if settings.decay:
        carry = u * (1 - settings.rate * settings.decay) if settings.decoupled else u.add(of_a, alpha=settings.decay)
    return Pulled(carry, carried, -of_a if settings.sign < 0 else of_a)


register_rule("torch.optim.adam.Adam", AdamRule)
register_rule("torch.optim.adamw.AdamW", lambda: AdamRule(decoupled=True))
