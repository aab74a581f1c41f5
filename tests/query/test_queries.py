"""Values and gradients of queries against formulas, in eval mode, whatever the model's present mode."""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.adjoint.query_gradient import BoundQuery
from lightning_sgdinf.dtypes import cast_floats
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.query import (
    ExampleLoss,
    FunctionQuery,
    Margin,
    MeanLoss,
    PerClassLoss,
    Query,
    ValidationData,
    batch_size,
)
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.objective import open_objective
from tests.adjoint.cases import BY_NAME, Recorded, record


@dataclass(frozen=True)
class Encoded:
    x: Tensor
    y: Any


@pytest.fixture(scope="module")
def run() -> Recorded:
    return record(BY_NAME["batchnorm"])


def data_of(run: Recorded, **loader: Any) -> ValidationData:
    validation_loader = DataLoader(run.validation.dataset, **loader) if loader else run.validation
    return ValidationData(loader=validation_loader, transfer=lambda batch: batch)


def asked(run: Recorded, query: Query, data: ValidationData | None = None, module: Any = None) -> tuple[Tensor, Tensor]:
    """Values and, flat, the gradient in the parameters and the running statistics."""
    source = BatchSource([run.train], run.log.header)
    state = run.log.state(len(run.log))
    with open_objective(module or run.module, run.log.header, source, Host()) as objective:
        bound = BoundQuery(query=query, data=data or data_of(run), objective=objective)
        values, adjoint = bound.gradient(state)
        assert torch.equal(values, bound.value(state))
        parts = [adjoint.params, *(adjoint.buffers[n].flatten(1) for n in sorted(adjoint.buffers))]
    return values, torch.cat(parts, 1)


def by_hand(run: Recorded, function: Any) -> tuple[Tensor, Tensor]:
    """The same by autograd through the model's formulas; ``function`` of logits and labels gives ``[Q]``."""
    state = run.log.state(len(run.log))
    params = {n: p.requires_grad_() for n, p in state.params.items()}
    buffers = {n: b.double().requires_grad_() for n, b in state.buffers.items()}
    x, y = run.validation.dataset.tensors
    logits, _ = run.case.twice.twin(params, buffers, x, False, 0)
    values = function(logits, y)
    statistics = [buffers[n] for n in sorted(buffers) if "running" in n]
    rows = [torch.autograd.grad(v, [*params.values(), *statistics], retain_graph=True) for v in values]
    return values.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def losses(logits: Tensor, y: Tensor) -> Tensor:
    return torch.logsumexp(logits, 1) - logits.gather(1, y[:, None])[:, 0]


def per_class(logits: Tensor, y: Tensor) -> Tensor:
    return torch.stack([losses(logits, y)[y == c].mean() for c in sorted(set(y.tolist()))])


def margins(logits: Tensor, y: Tensor) -> Tensor:
    right = logits.gather(1, y[:, None])[:, 0]
    return right - torch.stack([max(row[c] for c in range(3) if c != k) for row, k in zip(logits, y, strict=True)])


CASES = {
    "mean loss": (MeanLoss(), lambda z, y: losses(z, y).mean()[None]),
    "per class": (PerClassLoss(), per_class),
    "examples": (ExampleLoss((7, 0, 3)), lambda z, y: losses(z, y)[[7, 0, 3]]),
    "mean margin": (Margin(), lambda z, y: margins(z, y).mean()[None]),
    "margins": (Margin(ids=(1, 9)), lambda z, y: margins(z, y)[[1, 9]]),
    "function": (
        FunctionQuery(
            lambda model, data: torch.stack([torch.softmax(model(data.loader.dataset.tensors[0]), 1)[0, 2]]),
            labels=("p",),
            better="higher",
        ),
        lambda z, y: torch.softmax(z, 1)[0, 2][None],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(run: Recorded, name: str) -> None:
    query, formula = CASES[name]
    values, gradient = asked(run, query)
    expected, slopes = by_hand(run, formula)
    assert torch.allclose(values, expected, rtol=1e-12)
    assert gradient.shape == slopes.shape
    assert slopes.abs().max() > 1e-3, "the test is degenerate"
    assert torch.allclose(gradient, slopes, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "loader", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 10}, {"batch_size": 4, "shuffle": True}]
)
def test_batching_and_order_do_not_matter(run: Recorded, loader: dict[str, Any]) -> None:
    values, gradient = asked(run, MeanLoss())
    other, turned = asked(run, MeanLoss(), data_of(run, **loader))
    assert torch.allclose(values, other, rtol=1e-13)
    assert torch.allclose(gradient, turned, rtol=1e-11, atol=1e-15)


def test_names_and_directions(run: Recorded) -> None:
    data = data_of(run)
    assert MeanLoss().names(data) == ("mean validation loss",)
    labels = sorted({int(y) for y in run.validation.dataset.tensors[1]})
    assert PerClassLoss().names(data) == tuple(f"loss of class {c}" for c in labels)
    assert ExampleLoss([2]).names(data) == ("loss of validation example 2",)
    assert Margin().names(data) == ("mean margin",)
    assert Margin([4]).names(data) == ("margin of validation example 4",)
    directions = {type(q).__name__: q.better for q, _ in CASES.values()}
    assert directions == {
        "MeanLoss": "lower",
        "PerClassLoss": "lower",
        "ExampleLoss": "lower",
        "Margin": "higher",
        "FunctionQuery": "higher",
    }


@pytest.mark.parametrize("query", [ExampleLoss([10]), ExampleLoss([-1]), ExampleLoss([]), Margin([99])])
def test_ids_that_are_not_there(run: Recorded, query: Query) -> None:
    with pytest.raises(ConfigurationError, match=r"expected some of 0 \.\. 9"):
        asked(run, query)


def test_a_function_with_another_number_of_values(run: Recorded) -> None:
    query = FunctionQuery(lambda model, data: model.net[0].weight.sum(1), labels=("a", "b"))
    with pytest.raises(ConfigurationError, match=r"returned 4 values for 2 names"):
        asked(run, query)


def test_a_query_may_differentiate_on_its_way(run: Recorded) -> None:
    def steepness(model: nn.Module, data: ValidationData) -> Tensor:
        x = data.loader.dataset.tensors[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
        return slope.square().mean()[None]

    values, gradient = asked(run, FunctionQuery(steepness, labels=("steepness",)))
    data, moved = data_of(run), []
    state = run.log.state(len(run.log))
    for eps in (1e-6, -1e-6):
        module = copy.deepcopy(run.module).eval()
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        with torch.no_grad():
            for name, value in {**state.params, **state.buffers}.items():
                named[name].copy_(value)
            for parameter in module.parameters():
                parameter.mul_(1 + eps)
        moved.append(float(steepness(module, data).detach()))
    theta = torch.cat([p.flatten() for p in state.params.values()])
    assert float(values) == pytest.approx(sum(moved) / 2, rel=1e-9)
    assert float(gradient[0, : len(theta)] @ theta) == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6)


class Validating(nn.Module):
    """Adds steps to a model."""

    @staticmethod
    def returning(run: Recorded, step: Any) -> Any:
        module = run.module
        module.__class__ = type("WithValidation", (type(module),), {"validation_step": step})
        return module


def test_the_validation_step_is_asked_first(run: Recorded) -> None:
    def twice(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return 2 * F.cross_entropy(self(batch[0]), batch[1])

    def in_a_dict(self: Any, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"loss": twice(self, batch, batch_idx), "more": 1}

    def nothing(self: Any, batch: Any, batch_idx: int) -> None:
        return None

    values, gradient = asked(run, MeanLoss())
    for step in (twice, in_a_dict):
        doubled, slopes = asked(run, MeanLoss(), module=Validating.returning(run, step))
        assert torch.allclose(doubled, 2 * values)
        assert torch.allclose(slopes, 2 * gradient)
    same, _ = asked(run, MeanLoss(), module=Validating.returning(run, nothing))
    assert torch.equal(same, values)
    same, _ = asked(run, MeanLoss(step="training_step"), module=Validating.returning(run, twice))
    assert torch.equal(same, values)
    with pytest.raises(ConfigurationError, match="validation_step returns no loss"):
        asked(run, MeanLoss(step="validation_step"), module=Validating.returning(run, nothing))


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
        ({"x": torch.zeros(3)}, 3),
        (UserDict(words=["a"], x=torch.zeros(4, 2)), 4),
        (Encoded(torch.zeros(2, 3), 7), 2),
        (SimpleNamespace(x=torch.zeros(6, 1)), 6),
        (SimpleNamespace(num_graphs=3, x=torch.zeros(11, 2)), 3),
    ],
)
def test_sizes_of_batches(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


@pytest.mark.parametrize("batch", [[1, "a"], torch.tensor(1.0), {}])
def test_a_batch_that_does_not_tell_its_size_is_refused(batch: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot tell how many examples"):
        batch_size(batch)


@pytest.mark.parametrize("form", [UserDict, dict, lambda x, y: Encoded(x, y), lambda x, y: SimpleNamespace(x=x, y=y)])
def test_batches_count_by_their_examples_whatever_their_form(form: Any) -> None:
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9)

    def collate(items: Any) -> Any:
        return form(x=torch.stack([a for a, _ in items]), y=torch.stack([b for _, b in items]))

    loader = DataLoader(TensorDataset(x, y), batch_size=4, collate_fn=collate)
    data = ValidationData(loader=loader, transfer=lambda batch: cast_floats(batch, torch.float64))
    read = [(batch["x"] if isinstance(batch, (UserDict, dict)) else batch.x, size) for batch, _, size in data.batches()]
    assert [size for _, size in read] == [4, 4, 1]
    assert torch.equal(torch.cat([part for part, _ in read]), x.double())


def test_rows_that_are_no_examples_do_not_count() -> None:
    """Time before batch: the loader knows how many sequences there are."""
    loader = DataLoader(
        TensorDataset(torch.zeros(5, 7)), batch_size=2, collate_fn=lambda s: torch.stack([a for (a,) in s], 1)
    )
    data = ValidationData(loader=loader, transfer=lambda batch: batch)
    assert [(tuple(batch.shape), size) for batch, _, size in data.batches()] == [((7, 2), 2), ((7, 2), 2), ((7, 1), 1)]


def test_labels_that_are_not_there() -> None:
    data = ValidationData(loader=DataLoader([1, 2]), transfer=lambda batch: batch)
    with pytest.raises(ConfigurationError, match=r"needs examples \(x, y\) with an integer label"):
        data.labels()


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2, dtype=torch.long)}, "gives dict"),
        ((torch.zeros(2, 3), torch.zeros(2)), "gives tuple of Tensor, Tensor"),
        (torch.zeros(2, 3), "gives Tensor"),
    ],
)
def test_margins_of_batches_without_labels(batch: Any, said: str) -> None:
    loader = DataLoader([0, 1], batch_size=2, collate_fn=lambda _: batch)
    data = ValidationData(loader=loader, transfer=lambda batch: batch)
    with pytest.raises(ConfigurationError, match=f"integer label y; the validation set {said}"):
        list(Margin([0]).terms(nn.Linear(3, 2), data))
