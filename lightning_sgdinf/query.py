r"""Queries of the final model: scalars :math:`q(\theta_T)` whose change scores explain.

A query is a weighted mean of scalar terms, each computed from one batch of validation data by the model in eval mode.
Its gradient, in the parameters and in the buffers that an eval-mode model reads, starts the walk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from lightning_sgdinf.arguments import require_instance
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.validation_data import ValidationData as ValidationData
from lightning_sgdinf.validation_data import batch_size as batch_size
from lightning_sgdinf.validation_data import not_labelled

Better = Literal["lower", "higher"]
Term = tuple[int, float, Tensor]
"""Number of the query, weight of the term in its mean, scalar with a graph."""


class Query(Protocol):
    """One or more scalars of the final model."""

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return a name per scalar; their number is ``Q``."""
        ...

    @property
    def better(self) -> Better:
        """Return the better direction."""
        ...

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield the terms whose weighted means are the scalars; each with its own graph, freed after use."""
        ...


def require_query(query: Any) -> None:
    """Refuse what is no query, such as a class or its name.

    Raises:
        ConfigurationError: Says what to write.
    """
    known = (MeanLoss, SubsetLoss, PerClassLoss, ExampleLoss, Margin, Accuracy, FunctionQuery)
    require_instance(query, "query", ("terms",), [kind.__name__ for kind in known])


class _LossQuery:
    __slots__ = ()

    @property
    def better(self) -> Better:
        """Return the direction of losses: lower."""
        return "lower"


@dataclass(frozen=True, slots=True)
class MeanLoss(_LossQuery):
    """The mean loss over the validation set, in eval mode.

    The loss is what ``validation_step`` returns, if it returns one, and what ``training_step`` returns for the batch
    otherwise.

    In Hydra::

        query:
          _target_: lightning_sgdinf.query.MeanLoss

    Attributes:
        step: ``"auto"`` as above, or the step to use.
    """

    step: Literal["auto", "validation_step", "training_step"] = "auto"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar."""
        del data
        return ("mean validation loss",)

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per batch, weighted by its size."""
        for batch, index, size in data.batches():
            yield 0, float(size), loss_of(model, batch, index, self.step, data.dataloader_idx)


@dataclass(frozen=True, slots=True)
class SubsetLoss(_LossQuery):
    """The mean loss over some chosen validation examples, such as those that the model gets wrong: one scalar.

    Attributes:
        ids: Indices in the validation set, each once; kept as a tuple.
        step: As in `MeanLoss`.
    """

    ids: Sequence[int]
    step: Literal["auto", "validation_step", "training_step"] = "auto"

    def __post_init__(self) -> None:
        if hasattr(self.ids, "__len__"):
            object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar."""
        _check_ids(self.ids, data)
        return (f"mean loss of {len(self.ids)} validation examples",)

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per batch, weighted by its size."""
        for batch, index, size in data.batches(self.ids):
            yield 0, float(size), loss_of(model, batch, index, self.step, data.dataloader_idx)


@dataclass(frozen=True, slots=True)
class PerClassLoss(_LossQuery):
    """The mean loss over the validation examples of each class: one scalar per class.

    Attributes:
        step: As in `MeanLoss`.
    """

    step: Literal["auto", "validation_step", "training_step"] = "auto"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar per label that occurs."""
        return tuple(f"loss of class {c}" for c in sorted(set(data.labels())))

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per class and batch."""
        labels = data.labels()
        for number, label in enumerate(sorted(set(labels))):
            for batch, index, size in data.batches([i for i, y in enumerate(labels) if y == label]):
                yield number, float(size), loss_of(model, batch, index, self.step, data.dataloader_idx)


@dataclass(frozen=True, slots=True)
class ExampleLoss(_LossQuery):
    """The loss of each of some chosen validation examples: one scalar per example.

    Attributes:
        ids: Indices in the validation set.
        step: As in `MeanLoss`.
    """

    ids: Sequence[int]
    step: Literal["auto", "validation_step", "training_step"] = "auto"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar per chosen example."""
        _check_ids(self.ids, data)
        return tuple(f"loss of validation example {i}" for i in self.ids)

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per example."""
        for number, chosen in enumerate(self.ids):
            for batch, index, _ in data.batches([chosen]):
                yield number, 1.0, loss_of(model, batch, index, self.step, data.dataloader_idx)


@dataclass(frozen=True, slots=True)
class Margin:
    """The lead of the right class, for each of some chosen validation examples.

    ``logit[y] - max(logit[c] for c != y)``, from ``model(x)``; negative where the example is classified wrongly.

    Attributes:
        ids: Indices in the validation set; ``None`` for one scalar, the mean over all.
    """

    ids: Sequence[int] | None = None

    @property
    def better(self) -> Better:
        """Return the direction of margins: higher."""
        return "higher"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar per chosen example, or of one."""
        if self.ids is None:
            return ("mean margin",)
        _check_ids(self.ids, data)
        return tuple(f"margin of validation example {i}" for i in self.ids)

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per example or batch."""
        groups: Sequence[Sequence[int] | None] = [None] if self.ids is None else [[i] for i in self.ids]
        for number, chosen in enumerate(groups):
            for batch, _, size in data.batches(chosen):
                x, y = _inputs_and_labels(batch)
                logits = model(x)
                right = logits.gather(1, y[:, None])[:, 0]
                others = logits.masked_fill(nn.functional.one_hot(y, logits.shape[1]).bool(), float("-inf"))
                yield number, float(size), (right - others.amax(1)).mean()


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The part of the validation examples whose label has the largest output of ``model(x)``.

    It has no gradient, so influence is refused it; for values and for what counterfactual training measures.

    In Hydra::

        query:
          _target_: lightning_sgdinf.query.Accuracy
    """

    @property
    def better(self) -> Better:
        """Return the direction of accuracies: higher."""
        return "higher"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the name of one scalar."""
        del data
        return ("validation accuracy",)

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per batch, weighted by its size."""
        for batch, _, size in data.batches():
            x, y = _inputs_and_labels(batch)
            yield 0, float(size), (model(x).argmax(1) == y).double().mean()


@dataclass(frozen=True, slots=True)
class FunctionQuery:
    """Any function of the model.

    Attributes:
        function: Is given the model (eval mode, gradients on) and `ValidationData`; returns a scalar tensor or ``[Q]``.
        labels: A name per scalar.
        better: The better direction.
    """

    function: Callable[[nn.Module, ValidationData], Tensor]
    labels: tuple[str, ...] = ("query",)
    better: Better = "lower"

    def names(self, data: ValidationData) -> tuple[str, ...]:
        """Return the given names."""
        del data
        return self.labels

    def terms(self, model: nn.Module, data: ValidationData) -> Iterator[Term]:
        """Yield one term per scalar, of one graph."""
        values = self.function(model, data).reshape(-1)
        if len(values) != len(self.labels):
            raise ConfigurationError(
                f"the query function returned {len(values)} values for {len(self.labels)} names {self.labels}"
            )
        for number in range(len(values)):
            yield number, 1.0, values[number]


def loss_of(model: nn.Module, batch: Any, batch_idx: int, step: str, dataloader_idx: int | None = None) -> Tensor:
    """Compute the scalar loss of a batch by the model's own step; see `MeanLoss`.

    Args:
        model: The LightningModule.
        batch: Of validation data, as ``validation_step`` gets it.
        batch_idx: Its index.
        step: As for `MeanLoss`.
        dataloader_idx: Number of the loader among several, for a ``validation_step`` that takes it.

    Raises:
        ConfigurationError: If the step asked for returns no loss, or takes a ``dataloader_idx`` that is not known.
    """
    output: Any = None
    if step != "training_step" and callable(getattr(model, "validation_step", None)):
        output = _loss(validation_output(model, batch, batch_idx, dataloader_idx))
        if output is None and step == "validation_step":
            raise ConfigurationError(
                "validation_step returns no loss with a gradient; return the loss from it, or use "
                "MeanLoss(step='training_step')"
            )
    if output is None:
        output = _loss(call_step(model.training_step, batch, batch_idx))  # type: ignore[arg-type]
    if output is None:
        raise ConfigurationError("neither validation_step nor training_step returns a loss tensor; use FunctionQuery")
    return output


def validation_output(model: Any, batch: Any, batch_idx: int, dataloader_idx: int | None) -> Any:
    """Return what ``validation_step`` does, called as a Trainer calls it.

    Raises:
        ConfigurationError: If it takes a ``dataloader_idx`` that is not known.
    """
    takes = inspect.signature(model.validation_step).parameters
    if "dataloader_idx" not in takes:
        return call_step(model.validation_step, batch, batch_idx)
    if dataloader_idx is not None:
        return model.validation_step(batch, batch_idx, dataloader_idx=dataloader_idx)
    if takes["dataloader_idx"].default is inspect.Parameter.empty:
        raise ConfigurationError(
            "validation_step takes dataloader_idx, and one loader was given: say which of the run's it is, "
            "InfluenceRunner(val_loader=0)"
        )
    return model.validation_step(batch, batch_idx)


def call_step(step: Callable[..., Any], batch: Any, batch_idx: Any) -> Any:
    """Return what a step of a LightningModule does; it need not take the index."""
    kinds = [p.kind for p in inspect.signature(step).parameters.values()]
    named = sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)
    if named == 1 and inspect.Parameter.VAR_POSITIONAL not in kinds:
        return step(batch)
    return step(batch, batch_idx)


def _inputs_and_labels(batch: Any) -> tuple[Any, Tensor]:
    """Return the first two parts of a batch, the second of them ``[B]`` integers."""
    if not isinstance(batch, Sequence) or len(batch) < 2:
        raise not_labelled(batch)
    labels = batch[1]
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise not_labelled(batch)
    return batch[0], labels


def _loss(output: Any) -> Tensor | None:
    value = output.get("loss") if isinstance(output, Mapping) else output
    return value if isinstance(value, Tensor) and value.requires_grad and value.numel() == 1 else None


def _check_ids(ids: Sequence[int], data: ValidationData) -> None:
    if not hasattr(ids, "__len__"):
        raise ConfigurationError(f"ids: expected a list of validation ids, got {ids!r}; write [{ids}]")
    wrong = [i for i in ids if not 0 <= i < data.size]
    if wrong or not len(ids):
        raise ConfigurationError(
            f"validation ids: expected some of 0 .. {data.size - 1}, got {wrong[:5] if wrong else 'none'}"
        )
