"""Loss and error of a classifier on held-out data, measured without leaving a trace in it.

The mean over the examples of a loader, in eval mode: of the cross-entropy (binary where there is one logit), and of the
share that is classified wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.random_state import preserved
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates import Retraining, with_state
from lightning_sgdinf.updates.datasets import SizedDataset

LogitsAndLabels = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""The answer of a model to a batch: logits ``[B, C]`` (``[B]`` or ``[B, 1]`` if there are two classes) and labels
``[B]``."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the examples of a loader.

    Attributes:
        loss: Mean cross-entropy, in nats.
        error: Share of wrongly classified examples, in ``[0, 1]``.
        count: Number of examples.
        losses: Cross-entropy of every example, float64 ``[count]``, CPU, in the order of the loader.
        wrong: Whether it is classified wrongly, bool ``[count]``.
    """

    loss: float
    error: float
    count: int
    losses: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64), repr=False, compare=False)
    wrong: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool), repr=False, compare=False)


def logits_and_labels(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return ``(model(x), y)`` of an ``(x, y)`` batch, on the model's device.

    Raises:
        ConfigurationError: The batch is of another form.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ConfigurationError(
            f"expected (x, y) batches, got {type(batch).__name__}; give `forward=`, a function from model and batch to "
            "logits and labels."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x, y = batch
    return model(x.to(device)), y.to(device)


def evaluate_classifier(
    model: nn.Module, loader: Iterable[Any], *, forward: LogitsAndLabels = logits_and_labels
) -> Evaluation:
    """Compute mean loss and error of a classifier, in eval mode and without gradients.

    The module's modes and every global generator are afterwards as before.

    Args:
        model: A classifier.
        loader: Yields batches; every example counts the same, whatever the size of its batch.
        forward: What the model says of a batch; see `LogitsAndLabels`.

    Returns:
        The two means, summed in float64.

    Raises:
        NonFiniteError: A loss is NaN or infinite; names the batch.
        ConfigurationError: The loader is empty, or logits and labels do not fit together.
    """
    each: list[Tensor] = []
    wrong: list[Tensor] = []
    with _evaluating(model):
        for position, batch in enumerate(loader):
            logits, labels = forward(model, batch)
            losses, predicted = _classified(logits, labels)
            if not torch.isfinite(losses).all():
                raise NonFiniteError(
                    f"batch {position} of the evaluation: expected finite losses, got {float(losses.double().sum())}; "
                    "the model diverged."
                )
            each.append(losses.to("cpu", torch.float64))
            wrong.append((predicted != labels.reshape(-1)).cpu())
    if not sum(map(len, each)):
        raise ConfigurationError("expected a loader with one example or more to evaluate on, got none.")
    losses, mistakes = torch.cat(each), torch.cat(wrong)
    return Evaluation(
        loss=float(losses.mean()),
        error=float(mistakes.double().mean()),
        count=len(losses),
        losses=losses,
        wrong=mistakes,
    )


class StateEvaluation:
    """The evaluation of states of one model.

    Args:
        model: Takes the states; its own values are put back after each.
        loader: Held-out data.
        forward: What the model says of a batch; see `LogitsAndLabels`.
    """

    def __init__(
        self, model: nn.Module, loader: Iterable[Any], *, forward: LogitsAndLabels = logits_and_labels
    ) -> None:
        self._model = model
        self._loader = loader
        self._forward = forward

    def __call__(self, state: ModelState) -> Evaluation:
        """Evaluate the model with a state; see `evaluate_classifier`."""
        with with_state(self._model, state):
            return evaluate_classifier(self._model, self._loader, forward=self._forward)


def held_out_value(
    retraining: Retraining, evaluate: Callable[[ModelState], Evaluation], *, metric: Literal["loss", "error"] = "loss"
) -> Callable[[Selection], float]:
    """Return the function that `CleansingContext.evaluate` asks for: loss or error after training with a selection.

    Args:
        retraining: How to train again.
        evaluate: On data that neither the scores nor the final result are computed from.
        metric: Which of the two; the error is what matters in the end, the loss is less noisy on few examples.
    """
    if metric not in ("loss", "error"):
        raise ConfigurationError(f"metric: expected 'loss' or 'error', got {metric!r}.")
    return lambda selection: getattr(evaluate(retraining(selection).state), metric)


class ModelPredictions:
    """The model's class for given training examples, as `CleansingContext.predictions` asks for.

    Args:
        model: With the final state loaded.
        dataset: The training set, map-style, best without random augmentation.
        batch_size: Examples per forward pass.
        collate_fn: As of a data loader.
        forward: What the model says of a batch; see `LogitsAndLabels`.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: SizedDataset,
        *,
        batch_size: int = 256,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        forward: LogitsAndLabels = logits_and_labels,
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._batch_size = batch_size
        self._collate_fn = collate_fn
        self._forward = forward

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Return classes ``[K]``, int64, CPU, of the examples with these ids."""
        subset = Subset(cast(Dataset[Any], self._dataset), list(ids))
        loader = DataLoader(subset, batch_size=self._batch_size, collate_fn=self._collate_fn)
        with _evaluating(self._model):
            classes = [_classified(*self._forward(self._model, batch))[1].cpu() for batch in loader]
        return torch.cat([torch.empty(0, dtype=torch.int64), *classes])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        # Starting a data loader draws from torch's generator, and a dataset may draw from any.
        with preserved(), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _classified(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    one = ((len(labels),), (len(labels), 1))
    if logits.shape in one and labels.shape in one:
        flat, targets = logits.reshape(-1), labels.reshape(-1)
        other = targets[(targets != 0) & (targets != 1)]
        if len(other):
            raise ConfigurationError(
                f"expected labels 0 or 1 beside one output per example, got {other[0].item()}; if this is no "
                "classifier, give a function of your own in place of this evaluation."
            )
        loss = functional.binary_cross_entropy_with_logits(flat, targets.to(flat.dtype), reduction="none")
        return loss, (flat > 0).long()
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise ConfigurationError(
            f"expected logits [B, C] (or [B] for two classes) and whole labels [B], got {tuple(logits.shape)} and "
            f"{labels.dtype} of shape {tuple(labels.shape)}; give `forward=`, see `LogitsAndLabels`."
        )
    return functional.cross_entropy(logits, labels.long(), reduction="none"), logits.argmax(dim=1)
