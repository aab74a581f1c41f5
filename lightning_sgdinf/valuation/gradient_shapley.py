r"""Gradient Shapley: one epoch of training on one example at a time, each credited with what its step changed.

.. math:: \phi_i = \mathrm{mean}_\pi \big(q(\theta_{t+1}) - q(\theta_t)\big), \quad
   \theta_{t+1} = \theta_t - \eta \nabla l_i(\theta_t), \quad i = \pi(t)

from the recorded run's initial model, over random orders ``pi``. The value before the first step counts, so the values
add up to what an epoch gains; the reference code credits the first example of every order with nothing.

For comparison: cheap, since an order is one epoch and not as many trainings as there are examples, and far behind
Shapley values in what it finds. The orders are taken at once. Models with BatchNorm, which cannot train on single
examples, are refused.

References:
    Ghorbani and Zou, "Data Shapley", ICML 2019 (arXiv:1904.02868), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.batch_structure import map_tensors, tensors_in
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError, StateNotStoredError, UnsupportedRunError
from lightning_sgdinf.estimators import Estimate
from lightning_sgdinf.log import MicroBatch
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.truth.memory import measure_footprint
from lightning_sgdinf.truth.replicas import OnePass, Stack
from lightning_sgdinf.truth.stacked_query import StackedQuery
from lightning_sgdinf.valuation.sampling import draw_order
from lightning_sgdinf.valuation.schemes import mean_of_rounds
from lightning_sgdinf.valuation.stopping import halves_agree

RATES = tuple(10 ** (-k / 2) for k in range(2, 10))
"""Learning rates that are tried, as in the reference: .1 down to 10^-4.5."""

TRIED = 10
"""Orders that a learning rate is tried on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientShapley:
    """Gradient Shapley values; see the module's text.

    In Hydra::

        estimator:
          _target_: lightning_sgdinf.valuation.GradientShapley
          permutations: 100

    Attributes:
        permutations: Orders, at least 2.
        learning_rate: Above 0; ``None`` takes the one of eight after whose epoch the first query is best, by mean less
            standard deviation over ten orders.
        seed: Of the orders.

    Raises:
        ConfigurationError: A number out of range.
    """

    permutations: int = 100
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 2 or (self.learning_rate is not None and not self.learning_rate > 0):
            raise ConfigurationError(
                "GradientShapley: expected 2 permutations or more and a learning rate above 0, got "
                f"{self.permutations} and {self.learning_rate}"
            )

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Return minus the values, see `DirectEstimator`, with their standard errors.

        Raises:
            StateNotStoredError: The initial model was not kept.
            UnsupportedRunError: The training step does not take one example at a time.
            ConfigurationError: Examples of different shapes.
        """
        if 0 not in run.log.state_indices:
            raise StateNotStoredError(
                f"gradient Shapley starts from the initial model, which was not kept (keep={run.log.header.keep!r}); "
                "record with keep='every_step' or 'every(k)'"
            )
        orders = torch.stack([draw_order("uniform", self.seed, r, run.examples) for r in range(self.permutations)])
        with random_state.preserved():
            epoch = _Epoch(run, query)
            rate = self.learning_rate or self._best_rate(epoch, orders[:TRIED])
            size = max(1, epoch.footprint.replicas(run.memory_bytes))
            paths = torch.cat([epoch.values(part, rate) for part in orders.split(size)])  # [T, N + 1, Q]
        credited = torch.zeros(len(orders), run.examples, paths.shape[2], dtype=torch.float64)
        credited.scatter_(1, orders[:, :, None].expand_as(credited), paths.diff(dim=1))
        sampled = mean_of_rounds(credited)
        agreement = halves_agree(len(orders), lambda start, stop: credited[start:stop].mean(0))
        notes = (
            f"An epoch of single examples at learning rate {rate:.3g}, for each order.",
            f"{len(orders)} orders; as many others would rank alike to {agreement.min():.2f}.",
        )
        meaning = (
            "GradientShapley: minus what the step on the example changes in an epoch of single examples, on average "
            "over orders; not the change of the recorded run without it."
        )
        return Estimate(-sampled.values, notes, sampled.standard_error, meaning)

    def _best_rate(self, epoch: _Epoch, orders: Tensor) -> float:
        sign = 1.0 if epoch.query.query.better == "higher" else -1.0

        def grade(rate: float) -> float:
            ends = sign * epoch.values(orders, rate, every=False)[:, -1, 0]
            return float(ends.mean() - ends.std()) if bool(torch.isfinite(ends).all()) else -torch.inf

        return max(RATES, key=grade)


class _Epoch:
    """Takes an epoch of single examples in several orders at once."""

    def __init__(self, run: OpenedRun, query: BoundQuery) -> None:
        self.run, self.query, self.footprint = run, query, measure_footprint(run, query)
        self._stacked = StackedQuery(query)
        examples = run.training.plain()
        batches = [examples.batch(torch.tensor([i])) for i in range(len(examples))]
        self._template = batches[0]
        columns = zip(*(tuple(tensors_in(batch)) for batch in batches), strict=True)
        try:
            self._columns = [torch.stack(column) for column in columns]
        except RuntimeError as error:
            raise ConfigurationError(
                "gradient Shapley takes one example per order at once, so examples must have one shape, as tensors "
                f"that are padded alike have: {error}"
            ) from error
        self._step = replace(run.log.step(0), micro_batches=(), accumulation=1)
        self._pass = OnePass(run.objective, self._step, MicroBatch(batch_idx=0, draws=()))

    def values(self, orders: Tensor, rate: float, *, every: bool = True) -> Tensor:
        """Return the queries' values along orders ``[T, N]``, ``[T, N + 1, Q]``: before the first step, after each.

        Args:
            orders: Example ids.
            rate: Learning rate.
            every: Ask after each step; otherwise at the two ends, ``[T, 2, Q]``.
        """
        run, count = self.run, len(orders)
        start, names = run.log.state(0), run.objective.vector.names
        like = run.objective.parameters[0]
        spread = lambda v: v.to(like.device).expand(count, *v.shape).clone()  # noqa: E731
        params = {n: spread(start.params[n].to(like.dtype)) for n in names}
        buffers = {n: spread(v) for n, v in start.buffers.items() if v.is_floating_point()}
        shared = {n: v.clone() for n, v in start.buffers.items() if not v.is_floating_point()}
        path = [self._ask(params, buffers, shared)]
        for place in range(orders.shape[1]):
            run.objective.load_buffers(shared)
            run.objective.prepare(self._step)
            for name, gradient in self._gradients(params, buffers, orders[:, place]).items():
                params[name] = params[name] - rate * gradient
            if every or place == orders.shape[1] - 1:
                path.append(self._ask(params, buffers, shared))
        return torch.stack(path, 1)

    def _gradients(self, params: dict[str, Tensor], buffers: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], *tensors: Tensor) -> Tensor:
            given: Iterator[Tensor] = iter(tensors)
            batch: Any = map_tensors(self._template, lambda _: next(given))
            return self._pass.loss({**params, **buffers}, batch, None)

        leaves = {n: v.detach().requires_grad_() for n, v in params.items()}
        pieces = [column[ids.to(column.device)] for column in self._columns]
        try:
            with torch.enable_grad():
                losses = torch.func.vmap(loss, randomness="same")(leaves, buffers, *pieces)
                # Orders do not see each other: the gradient of their sum is each one's own.
                each = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
            return {n: g for n, g in zip(leaves, each, strict=True) if g is not None}
        except SgdInfluenceError:
            raise
        except Exception as error:  # whatever a step of the user's can fail with on one example
            raise UnsupportedRunError(
                "gradient Shapley trains on one example at a time, many orders at once, which this training step does "
                f"not take ({type(error).__name__}: {str(error)[:200]}); use Shapley, Banzhaf or KnnShapley"
            ) from error

    def _ask(self, params: dict[str, Tensor], buffers: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
        at_once = self.footprint.queries(self.run.memory_bytes)
        stack = Stack(params=params, buffers=buffers, shared=shared, memory={}, fed={})
        return self._stacked.of_stack(stack, at_once=at_once, averaged=False)
