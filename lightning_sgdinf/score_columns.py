"""Columns of scores as they must be: names, directions and numbers that fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.ranking import Better


def check_names(queries: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of queries as a tuple.

    Raises:
        ConfigurationError: None, or one twice.
    """
    if isinstance(queries, str) or not queries or not all(isinstance(name, str) for name in queries):
        raise ConfigurationError(f"queries: expected a tuple of at least one name, got {queries!r}")
    if len(set(queries)) < len(queries):
        repeated = sorted({name for name in queries if queries.count(name) > 1})
        raise ConfigurationError(f"queries: expected different names, got {repeated} more than once")
    return tuple(queries)


def check_directions(better: tuple[Better, ...], queries: tuple[str, ...]) -> tuple[Better, ...]:
    """Return the good direction of each query.

    Raises:
        ConfigurationError: Another number of them, or unknown ones.
    """
    directions = tuple(better) or ("lower",) * len(queries)
    if len(directions) != len(queries) or not set(directions) <= {"lower", "higher", "order"}:
        raise ConfigurationError(
            f"better: expected 'lower', 'higher' or 'order' for each of {list(queries)}, got {better!r}"
        )
    return directions


def check_matrix(values: Tensor, queries: tuple[str, ...], name: str = "values", one: str = "score") -> Tensor:
    """Return numbers of examples and queries, float64 ``[N, Q]`` on the CPU.

    Raises:
        ConfigurationError: Another shape.
        NonFiniteError: NaN or infinity; names the example.
    """
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] != len(queries):
        raise ConfigurationError(
            f"{name}: expected shape [N, {len(queries)}], at least one example and one column per query, got "
            f"{list(values.shape)}"
        )
    values = values.detach().to("cpu", torch.float64).contiguous()
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        example, column = bad[0].tolist()
        raise NonFiniteError(
            f"{one} of example {example} for query {queries[column]!r} is {values[example, column].item()} ({len(bad)} "
            f"of {values.numel()} scores are not finite); look in the log for the first such loss"
        )
    return values


def check_epochs(per_epoch: Tensor, values: Tensor, queries: tuple[str, ...]) -> Tensor:
    """Return contributions of epochs, float64 ``[E, N, Q]`` on the CPU.

    Raises:
        ConfigurationError: Another shape, or they do not add up to the values.
        NonFiniteError: NaN or infinity; names epoch and example.
    """
    if per_epoch.ndim != 3 or per_epoch.shape[1:] != values.shape:
        expected = ", ".join(map(str, ("E", *values.shape)))
        raise ConfigurationError(f"per_epoch: expected shape [{expected}], got {list(per_epoch.shape)}")
    per_epoch = per_epoch.detach().to("cpu", torch.float64).contiguous()
    bad = (~per_epoch.isfinite()).nonzero()
    if len(bad):
        epoch, example, column = bad[0].tolist()
        raise NonFiniteError(f"score of example {example} for query {queries[column]!r}: not finite in epoch {epoch}")
    gap = (per_epoch.sum(0) - values).abs()
    # Relative to the largest of the column: contributions may have been summed in float32, and they cancel.
    if (gap > 1e-4 * per_epoch.abs().sum(0).amax(0)).any():
        example, column = divmod(int(gap.argmax()), len(queries))
        raise ConfigurationError(
            "per_epoch: expected contributions that sum to the values, got a sum of "
            f"{per_epoch[:, example, column].sum().item():.6g} for example {example}, query {queries[column]!r}, whose "
            f"value is {values[example, column].item():.6g}"
        )
    return per_epoch
