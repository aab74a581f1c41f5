"""Weight-averaging callbacks, observed: each update as ``average <- a * average + b * params``.

An average is a linear combination of the states of the run, so that its influence is the same walk with the query's
gradient fed in at several steps. The coefficients come from calling the user's averaging function once on a small
float64 tensor with known answers; a function that is not linear, or not the same for every element, shows there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sgdinf.random_state import preserved
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.patches import Patches

Average = Callable[[Tensor, Tensor], Tensor]
"""``(average, params) -> average``, elementwise, on tensors of its own."""


class AveragingWatch:
    """Observes the Trainer's averaging callback and tells of its updates.

    Args:
        trainer: Its callbacks are set up.
        patches: Holds the replaced update methods until the end of the fit.
        guard: Runs what the update methods call.
        updated: Called after each update with its coefficients.
        remark: Called with a sentence if an average cannot be followed.
    """

    def __init__(
        self,
        trainer: Any,
        patches: Patches,
        *,
        guard: Guard,
        updated: Callable[[float, float], None],
        remark: Callable[[str], None],
    ) -> None:
        self._guard = guard
        self._updated = updated
        self._remark = remark
        self._model: nn.Module | None = None
        self._with_buffers = False
        self._linear = True
        self.kind = ""
        averaging = [(c, kind) for c in trainer.callbacks if (kind := _averaging_kind(c))]
        if len(averaging) > 1:
            remark(f"{len(averaging)} callbacks average the weights; only the average of {averaging[0][1]} is recorded")
        for callback, kind in averaging[:1]:
            self.kind = type(callback).__qualname__
            count = torch.tensor(1)  # a trial, so that the header can say if it is not linear
            if kind == "WeightAveraging" and (averaged := callback._average_model) is not None:
                self._model, self._with_buffers = averaged.module, bool(averaged.use_buffers)
                self._coefficients(_of_averaged_model(averaged, count), averaged.multi_avg_fn or averaged.avg_fn)
                patches.place(averaged, "update_parameters", partial(self._around_weight_averaging, averaged))
            elif kind == "StochasticWeightAveraging":
                self._model = callback._average_model
                self._coefficients(_of_function(callback._avg_fn, count), callback._avg_fn)
                patches.place(callback, "update_parameters", self._around_swa)

    def average(self, names: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return the averaged parameters of the given names, and the buffers if they are averaged, too, on the CPU;
        ``None`` if there is no average that is known in full."""
        if self._model is None or not self._linear:
            return None
        averages: dict[str, Tensor] = {n: p for n, p in self._model.named_parameters() if n in names}
        if self._with_buffers:
            averages |= {n: b for n, b in self._model.named_buffers() if b.is_floating_point()}
        return {n: v.detach().cpu().clone() for n, v in averages.items()}

    def _around_weight_averaging(
        self, averaged: Any, update: Callable[[nn.Module], None]
    ) -> Callable[[nn.Module], None]:
        def update_parameters(model: nn.Module) -> None:
            count = averaged.n_averaged.clone()
            update(model)
            self._guard.run(self._tell_of_model, averaged, count)

        return update_parameters

    def _around_swa(self, update: Callable[..., None]) -> Callable[..., None]:
        def update_parameters(average_model: Any, model: Any, n_averaged: Tensor, avg_fn: Any) -> None:
            count = n_averaged.clone()
            update(average_model, model, n_averaged, avg_fn)
            self._guard.run(self._tell_of_function, avg_fn, count)

        return update_parameters

    def _tell_of_model(self, averaged: Any, count: Tensor) -> None:
        self._tell(count, _of_averaged_model(averaged, count), averaged.multi_avg_fn or averaged.avg_fn)

    def _tell_of_function(self, avg_fn: Any, count: Tensor) -> None:
        self._tell(count, _of_function(avg_fn, count), avg_fn)

    def _tell(self, count: Tensor, average: Average, source: Any) -> None:
        if count == 0:  # the first update copies
            self._updated(0.0, 1.0)
            return
        pair = self._coefficients(average, source)
        if pair is not None:
            self._updated(*pair)

    def _coefficients(self, average: Average, source: Any) -> tuple[float, float] | None:
        with nullcontext() if _draws_nothing(source) else preserved():
            pair = coefficients(average)
        if pair is None and self._linear:
            self._linear = False
            self._remark(
                f"the averaging function of {self.kind} is not of the form a * average + b * params, so the average is "
                "not recorded"
            )
        return pair


def coefficients(average: Average) -> tuple[float, float] | None:
    """Return ``(a, b)`` of an averaging function ``a * average + b * params``; ``None`` if it is of another form.

    Args:
        average: Called once, on float64 ``[7]``.
    """
    averages = torch.tensor([1.0, 0.0, 0.0, 0.75, -0.5, 3.0, -8.0], dtype=torch.float64)
    params = torch.tensor([0.0, 1.0, 0.0, 0.25, 0.125, -2.0, -5.0], dtype=torch.float64)
    with torch.no_grad():
        result = average(averages.clone(), params.clone()).to(torch.float64).cpu()
    a, b = result[0].item(), result[1].item()  # of (1, 0) and of (0, 1)
    expected = a * averages + b * params
    if not torch.allclose(result, expected, rtol=1e-9, atol=1e-12):
        return None
    return a, b


def own(function: Any) -> Any:
    """Return a copy of a callable that may count its calls; functions and methods of modules are used as they are."""
    return function if inspect.isroutine(function) else copy.deepcopy(function)


def _of_averaged_model(averaged: Any, count: Tensor) -> Average:
    """Return the averaging function of torch's ``AveragedModel``."""
    if averaged.multi_avg_fn is not None:
        in_place = own(averaged.multi_avg_fn)

        def average(a: Tensor, p: Tensor) -> Tensor:
            values = [a.to(count.device)]
            in_place(values, [p.to(count.device)], count)
            return values[0]

        return average
    if averaged.avg_fn is not None:
        return _of_function(averaged.avg_fn, count)
    weight = 1.0 / (float(count) + 1.0)
    return lambda a, p: (1.0 - weight) * a + weight * p


def _of_function(function: Callable[..., Tensor], count: Tensor) -> Average:
    function = own(function)
    return lambda a, p: function(a.to(count.device), p.to(count.device), count)


def _draws_nothing(function: Any) -> bool:
    """Tell if a function is known to leave the random generators alone."""
    return function is None or getattr(function, "__module__", "").split(".")[0] in (
        "torch",
        "lightning",
        "pytorch_lightning",
    )


def _averaging_kind(callback: Any) -> str:
    """Return the averaging base class of a callback by name, since both packages of Lightning have them."""
    names = [base.__name__ for base in type(callback).__mro__]
    return next((n for n in ("WeightAveraging", "StochasticWeightAveraging") if n in names), "")
