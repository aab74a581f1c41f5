"""Losses that example weights do not reach are refused before the first score, and the ways out work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.errors import ConfigurationError, UntappedLossError
from lightning_sgdinf.testing import relative_error
from tests.adjoint.cases import BY_NAME, Batching, Case, Recorded, altered, record, unrolled
from tests.adjoint.models import MODELS
from tests.certificate_remarks import lasting_notes

Loss = Callable[[Any, Tensor, Tensor], Tensor]


def by_hand(module: Any, z: Tensor, y: Tensor) -> Tensor:
    return (torch.logsumexp(z, 1) - z.gather(1, y[:, None])[:, 0]).mean()


def with_loss(run: Recorded, loss: Loss, **methods: Any) -> Any:
    """The run's module with another ``training_step`` of the same value."""
    kind = type(run.module)

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return loss(self, self(x, batch_idx), y)

    module = run.module
    module.__class__ = type("Other", (kind,), {"training_step": training_step, **methods})
    return module


def score(run: Recorded, module: Any, **more: Any) -> Scores:
    return InfluenceRunner(accelerator="cpu", certificate="off", progress=False, **more).run(
        module, run.train, run.validation, log=run.log
    )


def per_example_loss(self: Any, batch: Any, batch_idx: int) -> Tensor:
    x, y = batch
    z = self(x, batch_idx)
    return torch.logsumexp(z, 1) - z.gather(1, y[:, None])[:, 0]


def test_a_loss_written_by_hand_is_refused_and_both_ways_out_are_named() -> None:
    run = record(BY_NAME["momentum"])
    with pytest.raises(UntappedLossError, match=r"tap='head'.*per_example_loss\(batch, batch_idx\)"):
        score(run, with_loss(run, by_hand))


@pytest.mark.parametrize("name", ["momentum", "adamw", "momentum-pairs", "batchnorm", "batchnorm-ema", "adamw-groups"])
def test_a_method_for_the_losses_is_the_second_way_out(name: str) -> None:
    run = record(BY_NAME[name])
    values = score(run, with_loss(run, by_hand, per_example_loss=per_example_loss)).values
    assert relative_error(values, unrolled(BY_NAME[name])) < 1e-9


@pytest.mark.parametrize("name", ["momentum", "batchnorm", "conv"])
def test_a_tap_at_the_output_is_the_first(name: str) -> None:
    case = BY_NAME[name] if name in BY_NAME else Case(name=name, model=name)
    run = record(case)
    values = score(run, with_loss(run, by_hand), tap="net").values
    assert relative_error(values, unrolled(case)) < 1e-10


def test_a_tap_that_is_not_there_lists_what_is() -> None:
    run = record(BY_NAME["momentum"])
    with pytest.raises(ConfigurationError, match=r"tap='head'.*\['net', 'net.0', 'net.1', 'net.2'\]"):
        score(run, with_loss(run, by_hand), tap="head")


def test_a_method_that_says_something_else_is_refused() -> None:
    run = record(BY_NAME["momentum"])

    def twice(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return 2 * per_example_loss(self, batch, batch_idx)

    with pytest.raises(UntappedLossError, match="another gradient than training_step's loss"):
        score(run, with_loss(run, by_hand, per_example_loss=twice))


@pytest.mark.parametrize("name", ["momentum", "momentum-pairs", "batchnorm-ema"])
def test_a_function_given_to_the_runner_is_the_third(name: str) -> None:
    run = record(BY_NAME[name])

    def losses(module: Any, batch: Any, batch_idx: int) -> Tensor:
        return per_example_loss(module, batch, batch_idx)

    scores = score(run, with_loss(run, by_hand), per_example_loss=losses).values
    assert relative_error(scores, unrolled(BY_NAME[name])) < 1e-9


@pytest.mark.parametrize("form", [lambda each: each[:, None], lambda each: each.mean(), lambda each: each[:-1], float])
def test_losses_that_are_not_one_per_example_are_refused(form: Any) -> None:
    run = record(BY_NAME["momentum"])

    def losses(module: Any, batch: Any, batch_idx: int) -> Any:
        each = per_example_loss(module, batch, batch_idx)
        return 1.0 if form is float else form(each)

    with pytest.raises(UntappedLossError, match=r"step 8: per_example_loss must return .* shape \[4\], got"):
        score(run, with_loss(run, by_hand), per_example_loss=losses)


FULL = Batching(size=12, epochs=4)


@pytest.mark.parametrize("batching", [Batching(), FULL], ids=["batches", "full batch"])
def test_a_term_beside_the_loss_function_is_refused(batching: Batching) -> None:
    run = record(altered(BY_NAME["momentum"], batching=batching))

    def half(module: Any, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y) + 0.1 * (z**2).mean()

    with pytest.raises(UntappedLossError, match=r"% of the gradient comes from a term .*which enter at cross_entropy"):
        score(run, with_loss(run, half))


@pytest.mark.parametrize("batching", [Batching(), FULL], ids=["batches", "full batch"])
def test_a_penalty_on_the_weights_is_no_such_term(batching: Batching) -> None:
    case = altered(BY_NAME["maximize"], batching=batching)
    assert MODELS[case.model].make().penalty > 0
    assert relative_error(score(record(case), record(case).module).values, unrolled(case)) < 1e-10


def test_one_loss_function_fed_to_another_is_refused() -> None:
    run = record(BY_NAME["momentum"])

    def nested(module: Any, z: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(F.cross_entropy(z, y, reduction="none"), torch.zeros(len(y), dtype=z.dtype))

    with pytest.raises(UntappedLossError, match="not linear in the example weights"):
        score(run, with_loss(run, nested))


# Which rows belong to which example -----------------------------------------------------------------------------------


def notes(run: Recorded, module: Any) -> str:
    certificate = score(run, module).certificate
    assert certificate is not None
    return " ".join(certificate.unjudged)


def time_first(module: Any, z: Tensor, y: Tensor) -> Tensor:
    """A sequence loss over rows in the order time, example."""
    return F.cross_entropy(torch.stack([z, z], 0).flatten(0, 1), y.repeat(2))


def example_first(module: Any, z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.stack([z, z], 1).flatten(0, 1), y.repeat_interleave(2))


def in_batch(module: Any, z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def one_by_one(module: Any, z: Tensor, y: Tensor) -> Tensor:
    """Unbatched calls: three classes are no rows of examples."""
    return torch.stack([F.cross_entropy(z[i], y[i]) for i in range(len(z))]).mean()


def weighted(module: Any, z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, torch.tensor([0.1, 1.0, 3.0], dtype=z.dtype))


def test_rows_that_see_several_examples_are_told_of() -> None:
    run = record(BY_NAME["momentum"])
    assert "depends on the other examples of its batch" in notes(run, with_loss(run, in_batch))


@pytest.mark.parametrize("size", [4, 3])
@pytest.mark.parametrize("loss", [time_first, example_first, one_by_one])
def test_rows_in_any_order_are_their_examples(loss: Loss, size: int) -> None:
    """The value of each of these losses is the recorded one, so the scores are."""
    case = altered(BY_NAME["momentum"], batching=Batching(size=size))
    run = record(case)
    scores = score(run, with_loss(run, loss))
    assert relative_error(scores.values, unrolled(case)) < 1e-9
    assert not lasting_notes(scores.certificate)


def test_class_weights_are_no_reason_for_a_note() -> None:
    run = record(BY_NAME["momentum"])
    assert notes(run, with_loss(run, weighted)) == ""


@pytest.mark.parametrize("name", ["dampened", "batchnorm", "momentum-pairs", "embedding"])
def test_batch_statistics_and_dropout_are_no_reason(name: str) -> None:
    case = BY_NAME[name] if name in BY_NAME else Case(name=name, model=name)
    run = record(case)
    assert notes(run, run.module) == ""
