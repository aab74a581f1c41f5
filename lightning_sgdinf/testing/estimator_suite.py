"""Tests that any estimator must pass, one's own included.

Subclass in a test file, and pytest collects the methods::

    from lightning_sgdinf.testing import EstimatorSuite

    class TestMyEstimator(EstimatorSuite):
        estimator = MyEstimator()
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.estimators import DirectEstimator, Estimator
from lightning_sgdinf.query import FunctionQuery, ValidationData
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.testing.oracles import central_differences, relative_error
from lightning_sgdinf.testing.runs import EXAMPLES, NEVER_DRAWN, SmallRun, small_run


class EstimatorSuite:
    """Tests of one estimator on a short run; see the module's text.

    Attributes:
        estimator: The estimator to test.
        tolerance: Allowed relative error against central differences, for one that calls itself exact.
    """

    estimator: ClassVar[Estimator | DirectEstimator]
    tolerance: ClassVar[float] = 1e-6

    def test_scores_are_finite_and_not_all_zero(self) -> None:
        """Check that the scores are numbers and not all zero."""
        scores = self._scores(small_run(), _losses)
        assert bool(torch.isfinite(scores).all())
        assert scores.abs().max() > 0, "no example has any influence"

    def test_an_example_that_was_never_drawn_has_none(self) -> None:
        """Check that an example that took no part has score 0."""
        assert not self._scores(small_run(), _losses)[NEVER_DRAWN].any()

    def test_the_query_enters_linearly(self) -> None:
        """Check that twice the query has twice the scores."""
        run = small_run()
        once, twice = self._scores(run, _losses), self._scores(run, lambda z, y: 2 * _losses(z, y))
        assert (twice - 2 * once).abs().max() <= 1e-10 * once.abs().max()

    def test_queries_do_not_mix(self) -> None:
        """Check that several queries in one walk score as each by itself."""
        run = small_run()
        together = self._scores(run, _losses)
        for column in range(together.shape[1]):
            alone = self._scores(run, lambda z, y, q=column: _losses(z, y)[q : q + 1])
            assert (together[:, column] - alone[:, 0]).abs().max() <= 1e-10 * together.abs().max(), column

    def test_an_exact_one_is_what_training_again_gives(self) -> None:
        """Check that an estimator that calls itself exact is the derivative of the run over the steps it visits."""
        if isinstance(self.estimator, DirectEstimator) or not self.estimator.exact:
            return
        run = small_run()
        first = self.estimator.first_step(run.log)

        def query_after(weights: Tensor) -> Tensor:
            with InfluenceRunner(accelerator="cpu", progress=False).replayer(
                run.model, run.train, log=run.log
            ) as again:
                end = again.run(run.log.state(first), first, len(run.log), weights=weights)
            x, y = run.validation.dataset.tensors  # type: ignore[attr-defined]
            with torch.no_grad():
                return _losses(torch.func.functional_call(run.model, dict(end.params), (x,)), y)

        expected = central_differences(query_after, EXAMPLES)
        assert relative_error(self._scores(run, _losses), expected) <= self.tolerance

    def _scores(self, run: SmallRun, function: Any) -> Tensor:
        def of_model(model: nn.Module, data: ValidationData) -> Tensor:
            x, y = data.loader.dataset.tensors  # type: ignore[attr-defined]
            return function(model(x), y)

        size = len(function(torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64)))
        query = FunctionQuery(of_model, labels=tuple(f"query {q}" for q in range(size)))
        runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
        return runner.run(
            run.model, run.train, run.validation, log=run.log, query=query, estimator=self.estimator
        ).values


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute three queries: mean losses of parts of the validation set."""
    each = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([each[:3].mean(), each[3:8].mean(), each[8:].mean()])
