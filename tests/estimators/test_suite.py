"""The suite that ships, on every estimator, and on wrong ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.step import AdjointStep, PulledStep
from lightning_sgdinf.estimators import FinalParameters, LastEpochs, NoHessian, SgdInfluence, TracIn
from lightning_sgdinf.testing import EstimatorSuite, small_run


class TestSgdInfluence(EstimatorSuite):
    estimator = SgdInfluence()


class TestReducedDivisor(EstimatorSuite):
    estimator = SgdInfluence(divisor="reduced")


class TestDampedCurvature(EstimatorSuite):
    estimator = SgdInfluence(curvature_scale=0.3)


class TestLastEpochs(EstimatorSuite):
    estimator = LastEpochs(2)


class TestNoHessian(EstimatorSuite):
    estimator = NoHessian()


class TestTracIn(EstimatorSuite):
    estimator = TracIn()


class TestFinalParameters(EstimatorSuite):
    estimator = FinalParameters()


class WithoutCurvature(SgdInfluence):
    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        return at.pull(adjoint, curvature=0)


class Normed(SgdInfluence):
    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        pulled = at.pull(adjoint)
        return replace(pulled, slopes=pulled.slopes / pulled.slopes.norm())


def suite(of: SgdInfluence) -> EstimatorSuite:
    made = TestSgdInfluence()
    made.estimator = of  # type: ignore[misc]
    return made


def test_the_suite_fails_for_wrong_estimators() -> None:
    with pytest.raises(AssertionError):
        suite(WithoutCurvature()).test_an_exact_one_is_what_training_again_gives()
    with pytest.raises(AssertionError):
        suite(Normed()).test_the_query_enters_linearly()
    with pytest.raises(AssertionError):
        suite(Normed()).test_queries_do_not_mix()


def test_small_runs_are_reproducible_and_differ() -> None:
    before = torch.get_rng_state()
    assert small_run(1).log.digest == small_run(1).log.digest != small_run(2).log.digest
    assert torch.equal(before, torch.get_rng_state())
