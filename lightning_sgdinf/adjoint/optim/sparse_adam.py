r"""``torch.optim.SparseAdam``: Adam for the rows that a sparse gradient has; other rows and their moments stay.

Its :math:`\epsilon` is added before the correction of the second moment's bias, Adam's after it. So with
:math:`\epsilon / \sqrt{1 - \beta_2^t}` for Adam's the two are one step, and its own code is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_sgdinf.adjoint.optim.base import Options, Pulled, Update, register_rule
from lightning_sgdinf.adjoint.optim.torch_optim import TorchOptimRule


class SparseAdamRule:
    """`UpdateRule` of ``torch.optim.SparseAdam``, of elements that lie in rows of the gradient."""

    needs_gradient = True
    lazy = True

    def __init__(self) -> None:
        self._adam = TorchOptimRule(torch.optim.Adam)

    def take(self, params: Tensor, grad: Tensor, state: Mapping[str, Tensor], options: Options) -> Update:
        """See `UpdateRule.take`."""
        taken = float(state["step"]) if "step" in state else 0.0
        eps = options["eps"] / math.sqrt(1 - options["betas"][1] ** (taken + 1))
        return self._adam.take(params, grad, state, {**options, "eps": eps})


def spread(update: Update, chosen: Tensor, params: Tensor, state: Mapping[str, Tensor]) -> Update:
    """Return the update of some elements as one of all, of which the others stay as they are.

    Args:
        update: Of the chosen elements, ``[k]``.
        chosen: Bool ``[n]``.
        params: Before it, ``[n]``.
        state: Before it, by key: ``[n]`` or a scalar.
    """

    def put(values: Tensor, into: Tensor) -> Tensor:
        whole = into.clone()
        whole[..., chosen] = values.to(into)
        return whole

    def pull(u: Tensor, adjoint: Mapping[str, Tensor]) -> Pulled:
        pulled = update.pull(u[:, chosen], {k: v[:, chosen] for k, v in adjoint.items()})
        nothing = torch.zeros_like(u)
        moments = {k: put(v, adjoint.get(k, nothing)) for k, v in pulled.state.items()}
        return Pulled(put(pulled.params, u), moments, put(pulled.push, nothing))

    def entry(key: str, value: Tensor) -> Tensor:
        return put(value, state.get(key, torch.zeros_like(params))) if value.ndim else value

    return Update(put(update.params, params), {k: entry(k, v) for k, v in update.state.items()}, pull)


register_rule("torch.optim.sparse_adam.SparseAdam", SparseAdamRule)
