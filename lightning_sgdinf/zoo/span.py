r"""Inputs in coordinates of their own span, for models that begin with a linear layer.

Such a layer sees an input by inner products only, so :math:`x` may be written in an orthonormal basis :math:`B` of all
inputs, :math:`z = B^\top x`, if the layer starts from :math:`W B` in place of :math:`W`:

.. math:: W x = (W B)\,z, \qquad \nabla_{W B}\,l = \nabla_W\,l\;B, \qquad \lVert W\rVert^2 = \lVert W B\rVert^2 +
    \lVert W - W B B^\top\rVert^2.

Gradient descent, with momentum and with a quadratic penalty too, takes the same path in both, every output is the same
at every step, and so is every derivative of one; what lies outside of the span decays by itself and is seen by no
input. This holds for any optimizer that is linear in the gradient, and not for one that works coordinate by coordinate
(Adam). With a few hundred examples of thousands of words each, it is what makes one state per example small.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError


def span_of(inputs: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of a space that holds all inputs.

    Args:
        inputs: Float64 ``[M, D]``, with ``M < D``.

    Returns:
        Float64 ``[D, M]``.
    """
    return np.linalg.qr(inputs.T).Q


def enter_span(network: nn.Module, basis: Tensor) -> None:
    """Have a network take coordinates in place of vectors; its outputs stay what they were.

    Args:
        network: Its first layer with parameters is linear, of ``D`` inputs.
        basis: Orthonormal, ``[D, R]``.

    Raises:
        ConfigurationError: The first layer is another.
    """
    layer = next((m for m in network.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if not isinstance(layer, nn.Linear) or layer.in_features != len(basis):
        raise ConfigurationError(
            f"expected a network that begins with a linear layer of {len(basis)} inputs, got {layer}; give the vectors "
            "as they are to one that does not"
        )
    layer.weight = nn.Parameter((layer.weight.detach().to(basis) @ basis).to(layer.weight.dtype))
    layer.in_features = basis.shape[1]
