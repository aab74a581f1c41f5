r"""Telling unlearned models from exact ones, example by example, over many runs.

Both compare the margins :math:`\log p_y - \log(1 - p_y)` of an example over models that were trained with it and
unlearned it, with those over models that never saw it. One pair of runs says nothing of either; ten of each begin to.

References:
    Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022 (arXiv:2112.03570).
    Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024
    (arXiv:2403.01218): U-LiRA.
    Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024 (arXiv:2410.23232): KLOM.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError

LEAST_SPREAD = 1e-3
"""Standard deviations of margins below this count as this."""


def margin_divergence(exact: Tensor, unlearned: Tensor) -> Tensor:
    r"""Return, per example, the divergence of unlearned models' margins from exact ones', as of normals, in nats.

    .. math:: KL(N(\mu_e, \sigma_e^2) \| N(\mu_u, \sigma_u^2))

    It is KLOM but for the histograms, which need a hundred models of each kind.

    Args:
        exact: Margins of ``M`` models that never saw the examples, ``[M, n]``, ``M`` at least 2.
        unlearned: Of ``K`` models that unlearned them, ``[K, n]``, ``K`` at least 2.

    Raises:
        ConfigurationError: Too few models, or of different examples.
    """
    _expect(exact, unlearned, 2)
    means, spreads = zip(*(_normal(margins) for margins in (exact, unlearned)), strict=True)
    ratio = spreads[0] / spreads[1]
    return ratio.square() / 2 + ((means[0] - means[1]) / spreads[1]).square() / 2 - 0.5 - ratio.log()


def membership_accuracy(exact: Tensor, unlearned: Tensor) -> Tensor:
    """Return, per example, how often a likelihood ratio tells the two kinds of model apart (U-LiRA), in ``[0, 1]``.

    Each model in turn is judged by normal densities of the others' margins; a half is chance, less is chance as well.

    Args:
        exact: Margins of ``M`` models that never saw the examples, ``[M, n]``, ``M`` at least 3.
        unlearned: Of ``K`` models that unlearned them, ``[K, n]``, ``K`` at least 3.

    Returns:
        The mean of the two kinds' shares, ``[n]``.

    Raises:
        ConfigurationError: Too few models, or of different examples.
    """
    _expect(exact, unlearned, 3)
    shares = []
    for own, other in ((exact, unlearned), (unlearned, exact)):
        right = torch.zeros(own.shape[1], dtype=torch.float64)
        elsewhere = _normal(other)
        for model in range(len(own)):
            rest = _normal(torch.cat([own[:model], own[model + 1 :]]))
            odds = _log_density(own[model], *rest) - _log_density(own[model], *elsewhere)
            right += (odds > 0).double() + (odds == 0).double() / 2
        shares.append(right / len(own))
    return (shares[0] + shares[1]) / 2


def _normal(margins: Tensor) -> tuple[Tensor, Tensor]:
    return margins.double().mean(0), margins.double().std(0).clamp_min(LEAST_SPREAD)


def _log_density(value: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return -((value - mean) / spread).square() / 2 - spread.log() - math.log(2 * math.pi) / 2


def _expect(exact: Tensor, unlearned: Tensor, least: int) -> None:
    if exact.ndim != 2 or unlearned.ndim != 2 or exact.shape[1] != unlearned.shape[1]:
        raise ConfigurationError(
            f"expected margins [models, examples] of the same examples, got {list(exact.shape)} and "
            f"{list(unlearned.shape)}"
        )
    if min(len(exact), len(unlearned)) < least:
        raise ConfigurationError(
            f"expected margins of at least {least} models of each kind, got {len(exact)} and {len(unlearned)}; one "
            "pair of runs says nothing of a single example"
        )
