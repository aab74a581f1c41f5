"""Features of examples, among which outliers are looked for: a model's tensors on the way to its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.replay import Examples, OpenedRun

INPUTS = "inputs"
"""The first floating-point tensor of a batch."""
PENULTIMATE = "penultimate"
"""The input of the last linear layer of a forward pass."""


def features(run: OpenedRun, examples: Examples, layer: str = PENULTIMATE, *, batch_size: int = 500) -> Tensor:
    """Compute features of examples at the final model, in eval mode.

    Args:
        run: The run.
        examples: To compute them of.
        layer: ``"inputs"`` for the first floating-point tensor of a batch, ``"penultimate"`` for the input of the last
            linear layer that a forward pass calls, or the name of a sub-module, whose output it is.
        batch_size: Examples per forward pass, at least 1.

    Returns:
        ``[M, ...]``, on the CPU, in float32 or float64.

    Raises:
        ConfigurationError: No such sub-module, or one that gives no row per example.
        NonFiniteError: A feature is NaN or infinite; names the example.
    """
    rows = []
    with ExitStack() as stack:
        if layer == INPUTS:
            look = first_floats
        else:
            step = stack.enter_context(run.at(run.model))
            look = stack.enter_context(_watching(run.objective.module, layer, step))
        for ids, batch in examples.batches(batch_size):
            part = look(batch).detach()
            if part.ndim == 0 or len(part) != len(ids):
                raise ConfigurationError(
                    f"features={layer!r}: expected one row for each of {len(ids)} examples, got shape "
                    f"{list(part.shape)}; name a sub-module whose output has them, or use features='inputs'"
                )
            part = part.to("cpu", torch.promote_types(part.dtype, torch.float32))
            if (wrong := first_not_finite(part)) is not None:
                raise NonFiniteError(f"features={layer!r} of example {int(ids[wrong])} are not all finite")
            rows.append(part)
    return torch.cat(rows)


def feature_matrix(
    run: OpenedRun, examples: Examples, layer: str = PENULTIMATE, *, batch_size: int = 500
) -> np.ndarray:
    """Return `features` as scikit-learn takes them: ``[M, D]``, one row per example."""
    rows = features(run, examples, layer, batch_size=batch_size)
    return rows.reshape(len(rows), -1).numpy()


def scored_and_fitted(
    run: OpenedRun, layer: str, *, compat: bool, batch_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return matrices of the training examples and of those a detector of odd inputs is fitted on, in float64.

    The same matrix twice, or, with ``compat``, that of the validation examples for the second. Augmentation is left out
    of the training examples; what a data set draws that cannot leave it out comes from ``seed``.

    Raises:
        ConfigurationError: No such features, or ``compat`` without a validation loader.
        NonFiniteError: A feature is NaN or infinite.
    """

    def matrix(examples: Examples) -> np.ndarray:
        # In float64: differences of near distances decide.
        return feature_matrix(run, examples, layer, batch_size=batch_size).astype(np.float64)

    with random_state.seeded(seed):
        scored = matrix(run.training.plain())
        return scored, matrix(run.validation) if compat else scored


def first_not_finite(rows: Tensor) -> int | None:
    """Return the index of the first row ``[...]`` of ``[M, ...]`` with a NaN or an infinity; ``None`` without any."""
    wrong = (~torch.isfinite(rows)).reshape(len(rows), -1).any(dim=1).nonzero()
    return int(wrong[0]) if len(wrong) else None


def first_floats(batch: Any) -> Tensor:
    """Return the first floating-point tensor of a batch.

    Raises:
        ConfigurationError: There is none.
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ConfigurationError(
        f"features='inputs': expected a batch with a floating-point tensor, got {type(batch).__name__} without one; "
        "give features= the name of a sub-module whose output to take, e.g. an embedding"
    )


@contextmanager
def _watching(module: nn.Module, layer: str, step: Callable[[Any], Tensor]) -> Iterator[Callable[[Any], Tensor]]:
    """Yield a function from a batch to the last input or output of a layer in its step."""
    seen: list[Any] = []
    handles = []
    if layer == PENULTIMATE:
        linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
        handles = [part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for part in linear]
    else:
        handles = [_named(module, layer).register_forward_hook(lambda _, __, output: seen.append(output))]

    def look(batch: Any) -> Tensor:
        seen.clear()
        step(batch)
        if not seen:
            raise ConfigurationError(
                f"features={layer!r}: a forward pass calls no such layer; give features='inputs', or the name of a "
                f"sub-module that it calls: {_names(module)}"
            )
        return first_floats(seen[-1])

    try:
        yield look
    finally:
        for handle in handles:
            handle.remove()


def _named(module: nn.Module, layer: str) -> nn.Module:
    parts = dict(module.named_modules())
    if not layer or layer not in parts:
        raise ConfigurationError(
            f"features={layer!r}: expected 'penultimate', 'inputs' or the name of a sub-module: {_names(module)}"
        )
    return parts[layer]


def _names(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_modules() if name)
