r"""Stochastic gradient descent as ``torch.optim.SGD`` does it, and its adjoint in closed form.

With :math:`\sigma = -1` for ``maximize`` and 1 otherwise, weight decay :math:`\lambda`, momentum :math:`\mu`, dampening
:math:`d`:

.. math::
    a = \sigma g + \lambda\theta, \quad b' = \mu b + (1 - d) a, \quad
    e = b' \text{ or } a + \mu b' \text{ (Nesterov)}, \quad \theta' = \theta - \eta e.

At the very first step torch sets :math:`b' = a`, without dampening. Backwards, with adjoints :math:`u, v` of
:math:`\theta', b'`:

.. math::
    \bar e = -\eta u, \quad \bar b = v + \bar e \,(\mu\bar e\text{ if Nesterov}), \quad
    \bar a = (1 - d)\bar b\;(+\,\bar e\text{ if Nesterov}), \quad
    push = \sigma\bar a, \quad carry_\theta = u + \lambda\bar a, \quad carry_b = \mu\bar b.

None of it depends on the gradient's value. For :math:`\mu = \lambda = 0` this is Algorithm 2 of the reference.

References:
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (arXiv:1906.08473).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_sgdinf.adjoint.optim.base import Options, Pulled, Update, register_rule

BUFFER = "momentum_buffer"


class SgdRule:
    """`UpdateRule` of ``torch.optim.SGD`` with momentum, dampening, Nesterov, weight decay and maximize."""

    needs_gradient = False

    def take(self, params: Tensor, grad: Tensor, state: Mapping[str, Tensor], options: Options) -> Update:
        """See `UpdateRule.take`; the forward part does torch's operations in torch's order."""
        lr, mu = float(options["lr"]), float(options.get("momentum", 0.0))
        decay, damping = float(options.get("weight_decay", 0.0)), float(options.get("dampening", 0.0))
        nesterov, sign = bool(options.get("nesterov")), -1.0 if options.get("maximize") else 1.0
        first = mu != 0 and BUFFER not in state

        direction = -grad if sign < 0 else grad
        if decay != 0:
            direction = direction.add(params, alpha=decay)
        after: dict[str, Tensor] = {k: v for k, v in state.items() if k == BUFFER}
        if mu != 0:
            buffer = direction.clone() if first else state[BUFFER].mul(mu).add_(direction, alpha=1 - damping)
            after[BUFFER] = buffer
            direction = direction.add(buffer, alpha=mu) if nesterov else buffer

        def pull(u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
            e = u * -lr
            if mu == 0:
                a, carry = e, dict(adjoint)  # a schedule may switch momentum off for a while; the buffer then rests
            else:
                b = e * mu if nesterov else e
                if BUFFER in adjoint:
                    b.add_(adjoint[BUFFER])
                a = b if first or damping == 0 else b * (1 - damping)
                if nesterov:
                    a = a + e
                carry = {} if first else {BUFFER: b * mu}
            return Pulled(u.add(a, alpha=decay) if decay else u, carry, -a if sign < 0 else a)

        return Update(params.add(direction, alpha=-lr), after, pull)


register_rule("torch.optim.sgd.SGD", SgdRule)
