"""Class probabilities and labels of examples, seen at the loss function of a classifier's own step.

A step whose loss is one call of ``cross_entropy``, ``nll_loss`` or one of the binary cross entropies with one label per
example, or the ``nn`` modules of these, shows both; nothing need be known of the model or of the form of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.kernels import Interceptor
from lightning_sgdinf.replay.examples import Examples
from lightning_sgdinf.replay.opened import OpenedRun
from lightning_sgdinf.state import ModelState


@dataclass(frozen=True, slots=True, eq=False)
class ClassProbabilities:
    """Class probabilities of ``M`` examples and ``C`` classes, with the given labels.

    Attributes:
        log_values: Logarithms ``[M, C]``, float64, CPU: they tell apart what is almost sure, and differ as logits do.
        labels: Given classes ``[M]``, int64, CPU.
    """

    log_values: Tensor
    labels: Tensor

    @property
    def values(self) -> Tensor:
        """Return probabilities ``[M, C]``, float64, CPU; rows sum to 1."""
        return self.log_values.exp()


def class_probabilities(
    run: OpenedRun, examples: Examples, model: ModelState | None = None, *, batch_size: int = 500
) -> ClassProbabilities:
    """Compute class probabilities and labels of examples, in eval mode.

    Args:
        run: The run.
        examples: To classify.
        model: Parameters and buffers; those of the final model if ``None``.
        batch_size: Examples per forward pass.

    Raises:
        ConfigurationError: The step's loss is not one that shows them; says what is. Or a label is not one of its
            classes; names the example.
        NonFiniteError: A probability is NaN; names the example.
    """
    batches = []
    with run.at(run.model if model is None else model) as loss:
        for ids, batch in examples.batches(batch_size):
            calls = _LossCalls()
            with Interceptor(dict.fromkeys(_SHOWN, calls.handle)):
                loss(batch)
            probabilities = calls.only(len(ids))
            wrong = probabilities.log_values.isnan().any(dim=1).nonzero()
            if len(wrong):
                raise NonFiniteError(f"the class probabilities of example {int(ids[wrong[0]])} are not finite")
            _refuse_foreign_labels(probabilities, ids)
            batches.append(probabilities)
    return ClassProbabilities(torch.cat([b.log_values for b in batches]), torch.cat([b.labels for b in batches]))


def _refuse_foreign_labels(probabilities: ClassProbabilities, ids: Tensor) -> None:
    classes = probabilities.log_values.shape[1]
    labels = probabilities.labels
    foreign = ((labels < 0) | (labels >= classes)).nonzero()
    if len(foreign):
        place = int(foreign[0])
        raise ConfigurationError(
            f"class probabilities: expected labels from 0 to {classes - 1}, got {int(labels[place])} for example "
            f"{int(ids[place])}; an example whose label the loss ignores has no place in a ranking by it: leave it out "
            "of the data set, or rank by an influence estimator, which gives it 0"
        )


def lead(values: Tensor, labels: Tensor, *, alone: float) -> Tensor:
    """Return the lead of the given class over the best other one, ``[M]``.

    Args:
        values: Of every class, ``[M, C]``.
        labels: Given classes ``[M]``.
        alone: Stands for the others where there is one class only; below all values.
    """
    given = values.gather(1, labels[:, None])[:, 0]
    return given - values.scatter(1, labels[:, None], alone).amax(1)


class _LossCalls:
    """The calls of loss functions in one step."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any]] = []

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
        # From inside the intercepted function its own parts are not seen: cross_entropy shows once.
        self.calls.append((func, named.get("input"), named.get("target")))
        return func(*args, **kwargs)

    def only(self, count: int) -> ClassProbabilities:
        """Return what the one loss of a batch of ``count`` examples showed."""
        shown = [_read(*call) for call in self.calls]
        fitting = [s for s in shown if s is not None and len(s.labels) == count]
        if len(shown) != 1 or len(fitting) != 1:
            raise ConfigurationError(
                "class probabilities: expected a training step whose loss is one call of cross_entropy, nll_loss, "
                "binary_cross_entropy or binary_cross_entropy_with_logits with one whole label per example, got "
                f"{[call[0].__name__ for call in self.calls] or 'no such call'}; rank by LossBaseline, or give "
                "ConfidentLearning(probabilities=..., labels=...)"
            )
        return fitting[0]


def _read(func: Callable[..., Any], scores: Any, target: Any) -> ClassProbabilities | None:
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        return None
    scores = scores.detach().to("cpu", torch.float64)
    if func in (F.cross_entropy, F.nll_loss):
        if scores.ndim != 2 or target.ndim != 1 or target.is_floating_point():
            return None
        return ClassProbabilities(
            torch.log_softmax(scores, 1) if func is F.cross_entropy else scores, target.detach().cpu().long()
        )
    rows = len(target)
    labels = target.detach().to("cpu", torch.float64).reshape(-1)
    if len(labels) != rows or scores.numel() != rows or not bool(((labels == 0) | (labels == 1)).all()):
        return None
    if func is F.binary_cross_entropy_with_logits:
        both = torch.stack([F.logsigmoid(-scores), F.logsigmoid(scores)])
    else:  # which takes no logarithm below -100 either
        both = torch.stack([torch.log1p(-scores), scores.log()]).clamp(min=-100.0)
    return ClassProbabilities(both.reshape(2, rows).T, labels.long())


_SHOWN: tuple[Callable[..., Any], ...] = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)
