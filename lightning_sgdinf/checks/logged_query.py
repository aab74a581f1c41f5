"""The query against what Lightning itself logged for the final model.

The last validation pass of the run is taken again: final model, the loader given, the modes, epoch and step of the end.
Where the loss of every batch is what the module logs under a name, the mean of it, weighted as Lightning weights, must
be what the run has under that name. Compared is only what can be: a whole pass of this very model on the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.batch_structure import tensors_in
from lightning_sgdinf.certificate import Check, rounding_in
from lightning_sgdinf.errors import ConfigurationError, QueryMismatchError
from lightning_sgdinf.log import uncompiled
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.query import MeanLoss, validation_output
from lightning_sgdinf.replay import OpenedRun, validation_pass

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
"""Largest relative difference from what was logged that is no error; 2e-2 in coarser precisions."""


_CAUSES = (
    "Usual causes: a hook or callback that changes what validation does and is not in the record, a validation_step "
    "that was changed since, or state that it keeps. Make validation_step depend on the model and its batch alone, or "
    "ask the question as a FunctionQuery; certificate='off' gives the scores unchecked."
)


@dataclass(slots=True)
class _Pass:
    """One validation pass: what was logged under each name and what was returned, batch by batch."""

    losses: list[float] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    logged: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def mean_of_loss(self) -> tuple[str, float] | None:
        """Return name and mean of what is logged of the loss; ``None`` if it is not."""
        for name, values in self.logged.items():
            same = len(values) == len(self.losses) and all(
                abs(v - loss) <= 1e-6 * max(abs(loss), 1e-12) for (v, _), loss in zip(values, self.losses, strict=True)
            )
            if same and self.losses:
                return name, sum(v * size for v, size in values) / sum(size for _, size in values)
        return None


def check_logged_query(run: OpenedRun, query: BoundQuery, value: Tensor) -> tuple[list[Check], list[str]]:
    """Compare a query with what the run logged for the final model.

    Args:
        run: The recorded run.
        query: What is asked.
        value: Its value at the final model, ``[Q]``.

    Returns:
        The check, if there was something to compare with, and notes.

    Raises:
        QueryMismatchError: The validation of the final model is another than the run's.
    """
    recorded: Any = run.log.step(len(run.log) - 1).validation
    if not recorded or not recorded["metrics"] or not callable(getattr(run.objective.module, "validation_step", None)):
        return [], []
    if reason := _incomparable(run, query, recorded):
        return [], [f"The query was not compared with what the run logged: {reason}."]
    now = _take(run, query)
    known = now.mean_of_loss()
    number = run.val_loader
    names = {f"{known[0]}/dataloader_idx_{number}", known[0]} if known else set()
    name = next((n for n in sorted(names, key=len, reverse=True) if n in recorded["metrics"]), None)
    if known is None or name is None:
        return [], []
    logged, mean = recorded["metrics"][name], known[1]
    precision = _recorded_precision(run, now)
    tolerance = TOLERANCE.get(precision, 2e-2)
    apart = _apart(mean, logged)
    if apart > tolerance:
        again = _take(run, query, seed=1).mean_of_loss()
        if again is None or _apart(again[1], mean) > tolerance:
            return [], ["The query was not compared with what the run logged: its validation draws random numbers."]
        raise QueryMismatchError(
            f"the run logged {name} = {logged:.10g} for the final model, and the same validation now gives "
            f"{mean:.10g}. Expected the two to be equal. {_CAUSES}"
        )
    notes = []
    if isinstance(query.query, MeanLoss) and _apart(float(value[0]), logged) > tolerance:
        notes.append(
            f"The query is {float(value[0]):.10g} where the run logged {name} = {logged:.10g}: the query counts every "
            "example once, the run weights its batches by the batch_size of self.log."
        )
    check = Check(
        name="query",
        compared=f"a validation of the final model against {name} as the run logged it, {logged:.6g}",
        where=f"{sum(now.sizes)} validation examples",
        precision=precision,
        deviation=apart,
        unit="of it",
        tolerance=tolerance,
        rounding=rounding_in(precision),
    )
    return [check], notes


def _recorded_precision(run: OpenedRun, now: _Pass) -> str:
    """Return the coarsest precision that the run's validation was computed in."""
    named = {"32-true": "float32", "32": "float32", "64-true": "float64", "64": "float64"}
    precision = named.get(run.log.header.precision, run.log.header.precision)
    narrow = run.precision == "float32" or torch.float32 in now.dtypes
    return "float32" if precision == "float64" and narrow else precision


def _apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(b), 1e-12)


def _incomparable(run: OpenedRun, query: BoundQuery, recorded: Mapping[str, Any]) -> str:
    """Return why the last validation of the run is not one of the final model on these data; empty if it is."""
    if recorded["world_size"] > 1:
        return "each of several processes validated a part"
    model = run.model
    tensors = {uncompiled(n): v for n, v in (*model.params.items(), *model.buffers.items())}
    if recorded["model"] != batch_digest(tensors):
        return "its last validation was of another model than the final one"
    loader = query.data.loader
    with random_state.seeded(0):
        first = next(iter(loader), None)
    if recorded["first_batch"] is not None and query.data.dataloader_idx in (None, 0):
        if batch_digest(first) != recorded["first_batch"]:
            return "the validation data are others than in the run, or come in another order"
        try:
            several = query.data.dataloader_idx is not None
            if not several and len(loader) != recorded["batches"]:
                return "the run validated on a part of the data"
        except TypeError:
            return "the number of validation batches is not known"
    return ""


def _take(run: OpenedRun, query: BoundQuery, seed: int = 0) -> _Pass:
    """Take the validation pass at the final model, with what it logs."""
    objective, taken = run.objective, _Pass()
    module, data = objective.module, replace(query.data, seed=seed)
    batch_size = 1.0

    def log(name: str, value: Any, *args: Any, **settings: Any) -> None:
        is_mean = settings.get("on_epoch", True) and settings.get("reduce_fx", "mean") in ("mean", torch.mean)
        is_number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
        if not args and is_mean and is_number:
            size = float(settings.get("batch_size") or batch_size)
            taken.logged.setdefault(name, []).append((float(torch.as_tensor(value).detach()), size))

    def log_dict(values: Mapping[str, Any], *args: Any, **settings: Any) -> None:
        for name, value in values.items():
            log(name, value, *args, **settings)

    attributes = vars(module)
    before = {name: attributes.get(name) for name in ("log", "log_dict")}
    attributes.update(log=log, log_dict=log_dict)
    try:
        objective.load(run.model)
        with validation_pass(objective), random_state.preserved(), torch.no_grad(), query.context():
            for batch, index, size in data.batches():
                first = next((t for t in tensors_in(batch)), None)
                batch_size = float(len(first)) if first is not None and first.ndim else 1.0
                output = validation_output(module, batch, index, data.dataloader_idx)
                loss = output.get("loss") if isinstance(output, Mapping) else output
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    return _Pass()
                taken.losses.append(float(loss.detach()))
                taken.dtypes.add(loss.dtype)
                taken.sizes.append(size)
    except ConfigurationError:
        return _Pass()
    finally:
        for name, value in before.items():
            if value is None:
                attributes.pop(name, None)
            else:
                attributes[name] = value
    return taken
