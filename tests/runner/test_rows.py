"""Losses whose rows are not one per example: scores and counterfactuals against the training written out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.errors import UntappedLossError
from lightning_sgdinf.testing import relative_error
from tests.certificate_remarks import lasting_notes
from tests.runner.bent_situations import BENT, COUPLED, ScaledByALoss
from tests.runner.call_situations import CALLS
from tests.runner.row_situations import ROWS
from tests.runner.situations import N, Run, Situation


@pytest.mark.parametrize("kind", [*ROWS, *CALLS], ids=lambda kind: kind.__name__)
def test_scores_and_counterfactuals_are_those_of_the_loss_written_out(kind: type[Situation], tmp_path: Path) -> None:
    run = Run(kind(), tmp_path)
    scores = run.scores()
    assert not lasting_notes(scores.certificate)
    assert relative_error(scores.values, run.unrolled()) < 1e-9
    assert relative_error(run.counterfactuals().values, run.trained_again()) < 1e-9


@pytest.mark.parametrize("kind", BENT, ids=lambda kind: kind.__name__)
def test_what_is_made_of_a_mean_follows_the_weights(kind: type[Situation], tmp_path: Path) -> None:
    run = Run(kind(), tmp_path)
    scores = run.scores()
    assert scores.certificate is not None
    assert scores.certificate.unjudged == ()
    assert relative_error(scores.values, run.unrolled()) < 1e-9
    assert relative_error(run.counterfactuals().values, run.trained_again()) < 1e-9


@pytest.mark.parametrize("kind", COUPLED, ids=lambda kind: kind.__name__)
def test_what_is_made_of_the_losses_of_others_is_held_and_told_of(kind: type[Situation], tmp_path: Path) -> None:
    run = Run(kind(), tmp_path)
    scores = run.scores()
    assert scores.certificate is not None
    assert "depends on the losses of the other examples" in " ".join(scores.certificate.warnings)

    def slope(example: int, eps: float = 1e-5) -> Tensor:
        """A central difference: autograd knows nothing of what is behind a detach."""
        up, down = (torch.ones(N).double().index_fill(0, torch.tensor([example]), 1 + e) for e in (eps, -eps))
        return (run.take(down, graph=False) - run.take(up, graph=False)) / (2 * eps)

    assert relative_error(scores.values, torch.stack([slope(j) for j in range(N)]).detach()[:, None]) < 1e-7


# Terms that no example's weight reaches -------------------------------------------------------------------------------


class WithTerm(Situation):
    """A term written by hand beside the loss function, of the steps in ``there``."""

    there = frozenset(range(9))

    def term(self, net: nn.Module, x: Tensor) -> Tensor:
        return 0.5 * net(x).square().sum(1).mean()

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        data = super().loss(net, batch, t)
        return data + self.term(net, batch[0]) if t in self.there else data


class EveryThird(WithTerm):
    there = frozenset({1, 4, 7})


class FromTheSecondEpoch(WithTerm):
    there = frozenset(range(3, 9))


class FactorOnEveryThird(EveryThird):
    """Always computed; its factor is zero where it is not there."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return Situation.loss(self, net, batch, t) + float(t in self.there) * self.term(net, batch[0])


class FactorFromTheSecondEpoch(FactorOnEveryThird):
    there = FromTheSecondEpoch.there


class BesideAPenalty(WithTerm):
    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + 0.1 * net.weight.square().sum()  # type: ignore[union-attr,operator]


class BesideAPenaltyOnEveryThird(BesideAPenalty):
    there = EveryThird.there


class FactorOnceBesideAPenalty(FactorOnEveryThird):
    """Its factor is zero but for one step, which is none of those that are asked whether a penalty is one."""

    there = frozenset({4})

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + 0.1 * net.weight.square().sum()  # type: ignore[union-attr,operator]


class FactorThatJoinsLater(FactorOnEveryThird):
    """Not computed in the first epoch; then its factor is zero but for one step."""

    there = frozenset({5})

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) if 3 <= t < 6 else Situation.loss(self, net, batch, t)


class Hinge(WithTerm):
    """Nothing violates its margin but in one step."""

    there = frozenset({3})

    def term(self, net: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(net(x).square().sum(1) - self.margin).mean()

    margin = 0.0

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        self.margin = 0.1 if t in self.there else 1e3
        return Situation.loss(self, net, batch, t) + self.term(net, batch[0]) + 0.1 * net.bias.square().sum()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("result", ["scores", "counterfactuals"])
@pytest.mark.parametrize(
    "kind",
    [
        WithTerm,
        EveryThird,
        FromTheSecondEpoch,
        FactorOnEveryThird,
        FactorFromTheSecondEpoch,
        BesideAPenalty,
        BesideAPenaltyOnEveryThird,
        FactorOnceBesideAPenalty,
        FactorThatJoinsLater,
        Hinge,
    ],
    ids=lambda kind: kind.__name__,
)
def test_a_term_without_weights_is_refused_at_a_step_that_has_it(
    kind: type[WithTerm], result: str, tmp_path: Path
) -> None:
    run = Run(kind(), tmp_path)
    expect_refused(run, kind, result)


def expect_refused(run: Run, kind: type[WithTerm], result: str) -> None:
    with pytest.raises(UntappedLossError, match=r"(?s)step \d+: .*per_example_loss") as refusal:
        getattr(run, result)()
    named = re.match(r"step (\d+):", str(refusal.value))
    assert named is not None
    assert int(named[1]) in kind.there


@pytest.mark.parametrize("kind", [FactorThatJoinsLater, Hinge], ids=lambda kind: kind.__name__)
def test_an_update_looks_at_every_step_that_it_takes(kind: type[WithTerm], tmp_path: Path) -> None:
    expect_refused(Run(kind(), tmp_path), kind, "updated")


def test_the_value_of_a_loss_is_no_weight_of_other_terms(tmp_path: Path) -> None:
    with pytest.raises(UntappedLossError, match="comes from a term of the loss that depends on the data"):
        Run(ScaledByALoss(), tmp_path).scores(certificate="off")


class PenaltyMissedByItsLosses(Situation):
    """``per_example_loss`` leaves out what one step has besides."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + 0.1 * (t == 4) * net.weight.square().sum()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("result", ["scores", "counterfactuals", "updated"])
def test_losses_of_examples_are_compared_with_the_loss_in_every_step(result: str, tmp_path: Path) -> None:
    run = Run(PenaltyMissedByItsLosses(), tmp_path)

    def losses(module: Any, batch: Any, batch_idx: int) -> Tensor:
        x, y, _ = batch
        return F.cross_entropy(module.net(x), y, reduction="none")

    with pytest.raises(UntappedLossError, match="step 4: the mean of per_example_loss"):
        getattr(run, result)(per_example_loss=losses)


# Why no weight enters -------------------------------------------------------------------------------------------------


class ByHand(Situation):
    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return net(batch[0]).square().mean()


class OnlyAsAMetric(ByHand):
    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, t) + F.l1_loss(batch[0], torch.zeros_like(batch[0]))


@pytest.mark.parametrize(
    ("kind", "why"),
    [(ByHand, "calls none of torch"), (OnlyAsAMetric, r"calls \(l1_loss\)")],
)
def test_the_loss_functions_that_were_seen_are_named(kind: type[Situation], why: str, tmp_path: Path) -> None:
    with pytest.raises(UntappedLossError, match=rf"step 8: the loss.* {why}"):
        Run(kind(), tmp_path).scores()


# Rows that see other examples -----------------------------------------------------------------------------------------


class InBatchNegatives(Situation):
    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        z = net(batch[0])
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))


class Neighbours(Situation):
    """Each row compares two examples, so there is one row less than examples."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        z = net(batch[0]).sum(1)
        return F.smooth_l1_loss(z[1:], z[:-1])


def test_in_batch_negatives_are_told_of(tmp_path: Path) -> None:
    run = Run(InBatchNegatives(), tmp_path)
    certificate = run.scores().certificate
    assert certificate is not None
    for said in (" ".join(certificate.warnings), " ".join(run.counterfactuals().notes)):
        assert "depends on the other examples of its batch" in said
        assert "cross_entropy at step" in said


class MixedInTheFirstEpoch(Situation):
    """Inputs are mixed before the examples are their own rows, as at the end."""

    until = 3

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(0.6 * x + 0.4 * x.roll(1, 0)) if t < self.until else net(x), y)


class MixedOnce(MixedInTheFirstEpoch):
    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return super().loss(net, batch, 0 if t == 4 else 9)


def test_examples_that_see_each_other_in_the_first_epoch_are_told_of(tmp_path: Path) -> None:
    certificate = Run(MixedInTheFirstEpoch(), tmp_path).scores().certificate
    assert certificate is not None
    assert "depends on the other examples of its batch" in " ".join(certificate.warnings)


@pytest.mark.parametrize("result", ["scores", "counterfactuals", "updated"])
def test_examples_that_see_each_other_in_one_step_are_refused_there(result: str, tmp_path: Path) -> None:
    run = Run(MixedOnce(), tmp_path)
    with pytest.raises(UntappedLossError, match=r"step 4: when examples .* examples of a batch see each other"):
        getattr(run, result)()


def test_an_update_says_what_scores_say_of_the_rows(tmp_path: Path) -> None:
    """Unless nothing is to be checked; a selection that leaves nothing out asks for no weights."""
    run = Run(InBatchNegatives(), tmp_path)
    assert "depends on the other examples of its batch" in " ".join(run.updated().notes)
    assert len(run.updated(certificate="off").notes) == 1


@pytest.mark.parametrize("result", ["scores", "counterfactuals"])
def test_rows_that_nobody_owns_are_counted(result: str, tmp_path: Path) -> None:
    run = Run(Neighbours(), tmp_path)
    with pytest.raises(
        UntappedLossError, match=r"step \d+: smooth_l1_loss sees 3 rows for the 4 examples .* 3 of them"
    ):
        getattr(run, result)()


class FewerInTraining(Situation):
    """Training leaves out rows that eval mode has."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y = batch
        few = torch.arange(len(x)) % 3 > 0 if net.training else torch.ones(len(x), dtype=torch.bool)
        return F.cross_entropy(net(x)[few], y[few])


@pytest.mark.parametrize("result", ["scores", "counterfactuals"])
def test_other_rows_than_in_eval_mode_are_refused(result: str, tmp_path: Path) -> None:
    run = Run(FewerInTraining(), tmp_path)
    with pytest.raises(UntappedLossError, match=r"step \d+: the loss has other rows than in eval mode"):
        getattr(run, result)()
