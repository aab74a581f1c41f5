r"""The likelihood of a classifier's labels, seen at the loss function of its own step, with its graph.

A step whose loss is one call of ``cross_entropy`` (logits ``[B, C]``, whole labels ``[B]``) or of
``binary_cross_entropy_with_logits`` (one logit per example) shows logits and labels; nothing need be known of the model
or of the form of a batch. Class weights and label smoothing are no part of a likelihood, and are left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.kernels import Interceptor
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, eq=False)
class Likelihood:
    """Logits of ``B`` examples, with their graph, and what they are labelled.

    Attributes:
        logits: ``[B, C]``, or ``[B]`` of a binary classifier.
        labels: Whole numbers ``[B]``, int64.
    """

    logits: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        """Return ``C``; 2 for a binary classifier."""
        return self.logits.shape[1] if self.logits.ndim == 2 else 2

    @property
    def losses(self) -> Tensor:
        """Return minus the log-likelihood of each label, ``[B]``, in nats."""
        if self.logits.ndim == 2:
            return F.cross_entropy(self.logits, self.labels, reduction="none")
        return F.binary_cross_entropy_with_logits(self.logits, self.labels.to(self.logits), reduction="none")

    @property
    def label_slope(self) -> Tensor:
        """Return the gradient of each example's loss in its logits, in their shape and without a graph."""
        z = self.logits.detach()
        if z.ndim == 2:
            return z.softmax(1) - F.one_hot(self.labels, z.shape[1]).to(z)
        return z.sigmoid() - self.labels.to(z)

    def slope_roots(self) -> Iterator[Tensor]:
        r"""Yield :math:`\sqrt{p_c}\,\nabla_z l_c` for each class, in the shape of the logits and without a graph.

        The sum of their squares is the expectation over labels drawn from the model, exactly.
        """
        z = self.logits.detach()
        if z.ndim == 1:
            p = z.sigmoid()
            yield (p * (1 - p)).sqrt()  # both labels: p (1 - p)^2 + (1 - p) p^2 = p (1 - p)
            return
        p = z.softmax(1)
        for label in range(z.shape[1]):
            slope = p.clone()
            slope[:, label] -= 1
            yield p[:, label : label + 1].sqrt() * slope


@contextmanager
def likelihood_at(run: OpenedRun, model: ModelState) -> Iterator[Callable[[Any], Likelihood]]:
    """Load a model, in eval mode inside the ``with`` block, and give the likelihood of a batch of `Examples`.

    Args:
        run: The run.
        model: Its parameters and buffers.

    Raises:
        ConfigurationError: On a batch, if the step's loss is not one that shows it; says what is.
    """
    with run.at(model) as loss:

        def likelihood(batch: Any) -> Likelihood:
            seen: list[Likelihood | None] = []

            def look(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                named = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
                seen.append(_read(func, named.get("input"), named.get("target")))
                return func(*args, **kwargs)

            with Interceptor({F.cross_entropy: look, F.binary_cross_entropy_with_logits: look}):
                loss(batch)
            if len(seen) != 1 or seen[0] is None:
                raise ConfigurationError(
                    "expected a training step whose loss is one call of cross_entropy or of "
                    "binary_cross_entropy_with_logits with one whole label per example, got "
                    f"{len(seen)} such calls; the likelihood of labels is not to be seen otherwise"
                )
            labels = seen[0].labels
            if bool(((labels < 0) | (labels >= seen[0].classes)).any()):
                raise ConfigurationError(
                    f"expected labels from 0 to {seen[0].classes - 1}, got some outside; an example whose label the "
                    "loss ignores has no likelihood: leave it out of the data set"
                )
            return seen[0]

        yield likelihood


def _read(func: Callable[..., Any], scores: Any, target: Any) -> Likelihood | None:
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        return None
    if func is F.cross_entropy:
        whole = scores.ndim == 2 and target.ndim == 1 and not target.is_floating_point()
        return Likelihood(scores, target.detach()) if whole else None
    labels = target.detach().reshape(-1)
    if scores.numel() != len(scores) or len(labels) != len(scores) or not bool(((labels == 0) | (labels == 1)).all()):
        return None
    return Likelihood(scores.reshape(-1), labels.long())


def class_logits(likelihood: Likelihood) -> Tensor:
    """Return logits of all classes, ``[B, C]``: of a binary classifier 0 and its one."""
    z = likelihood.logits
    return z if z.ndim == 2 else torch.stack([torch.zeros_like(z), z], 1)
