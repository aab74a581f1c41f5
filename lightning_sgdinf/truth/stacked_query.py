"""The values of a query for many models at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.dtypes import tensors_made_in
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.held_tensors import call_with
from lightning_sgdinf.kernels import ATTENTION, Interceptor
from lightning_sgdinf.replay import Objective, validation_pass
from lightning_sgdinf.replay.validation_hooks import start_hooks
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.truth.replicas import Stack


class StackedQuery:
    """Computes a query of the models of a stack.

    Args:
        query: The query, bound to its data.
        average: The recorded average of the weights at the end, if the query is computed for one.

    Attributes:
        note: Reason for taking models one after another; empty while they are taken at once.
    """

    def __init__(self, query: BoundQuery, average: Mapping[str, Tensor] | None = None) -> None:
        self.query, self.average = query, average
        self.names = query.names
        hooks = start_hooks(query.objective.module)
        self.note = "hooks of the start of a validation may look at one model's parameters" if hooks else ""

    def of_stack(self, stack: Stack, *, at_once: int, averaged: bool) -> Tensor:
        """Compute the values of every replica, float64 ``[L, Q]``, in groups of ``at_once`` replicas.

        Args:
            stack: The replicas' states; replica 0 is the run as recorded.
            at_once: Number of replicas to compute at once.
            averaged: Take the running average of the weights instead of the last ones.
        """
        params, buffers = dict(stack.params), dict(stack.buffers)
        if averaged and self.average is not None:
            params, buffers = (self._averaged(part, stack.fed) for part in (params, buffers))
        count = len(next(iter(params.values())))
        values = [
            self._of_models(
                {n: v[i : i + at_once] for n, v in params.items()},
                {n: v[i : i + at_once] for n, v in buffers.items()},
                stack.shared,
            )
            for i in range(0, count, at_once)
        ]
        return torch.cat(values)

    def _averaged(self, values: Mapping[str, Tensor], fed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the recorded average, shifted by what the steps fed each replica differently from replica 0."""
        assert self.average is not None
        averaged = dict(values)
        for name, value in values.items():
            if name in self.average:
                base = self.average[name].to(value.device, torch.float64)
                shift = fed[name] - fed[name][:1] if name in fed else torch.zeros_like(value, dtype=torch.float64)
                averaged[name] = (base + shift).to(value.dtype)
        return averaged

    def _of_models(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> Tensor:
        if not self.note:
            try:
                return self._vectorised(params, buffers, shared)
            except SgdInfluenceError:
                raise
            except Exception as error:  # whatever an operation of the user's can fail with in a vectorised pass
                self.note = f"the query was asked of one model after another: {first_line(error)}"
        count = len(next(iter(params.values())))
        return torch.stack(
            [
                self.query.value(
                    ModelState(
                        params={n: v[i] for n, v in params.items()},
                        buffers={**{n: v[i] for n, v in buffers.items()}, **shared},
                    )
                )
                for i in range(count)
            ]
        )

    def _vectorised(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> Tensor:
        bound, objective = self.query, self.query.objective
        data = replace(bound.data, seed=None)  # inside a vectorised pass generators cannot be read
        weights: list[float] = [0.0] * len(self.names)

        def terms() -> Tensor:
            totals: list[Any] = [0.0] * len(self.names)
            weights[:] = [0.0] * len(self.names)
            for number, weight, term in bound.query.terms(objective.module, data):
                totals[number] = totals[number] + weight * term.detach().double()
                weights[number] += weight
            return torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in totals])

        shell = _Shell(objective, terms)

        def values_of(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            def with_buffers(params: dict[str, Tensor]) -> Tensor:
                tensors = {f"module.{n}": v for n, v in (*params.items(), *buffers.items())}
                return call_with(shell, tensors)

            # Queries look whether a loss carries a gradient; inside a vjp it does, and the gradient is not computed.
            return torch.func.vjp(with_buffers, params)[0]

        objective.load_buffers(shared)
        with self._in_eval_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an operation is not vectorised only costs time
            values = torch.func.vmap(values_of, randomness="same")(dict(params), dict(buffers)).detach().cpu()
        if 0.0 in weights:
            raise ConfigurationError(
                "a query got no validation examples; check the validation loader and the ids asked for"
            )
        return values / torch.tensor(weights, dtype=torch.float64)

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        objective, seed = self.query.objective, self.query.data.seed
        generators = random_state.preserved() if seed is None else random_state.seeded(seed)
        precision = tensors_made_in(objective.dtype)
        with validation_pass(objective), generators, self.query.context(), precision, Interceptor(ATTENTION):
            yield


class _Shell(nn.Module):
    """A query as a module's forward pass, for ``call_with``."""

    def __init__(self, objective: Objective, terms: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = objective.module
        self._terms = terms

    def forward(self) -> Tensor:
        return self._terms()


def first_line(error: Exception) -> str:
    """Return an error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
