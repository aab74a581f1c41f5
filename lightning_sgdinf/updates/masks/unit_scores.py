"""Scores of units: the strength of their response to a set of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.updates.masks.layers import Layer, layers_of

By = Literal["outputs", "gradients"]


def unit_scores(
    run: OpenedRun, model: ModelState, ids: Sequence[int], by: By = "outputs", *, batch_size: int = 500
) -> dict[str, Tensor]:
    r"""Compute a score per unit of each layer, by the layer's name, float64 ``[units]``.

    The absolute value of the mean, over examples (and places, for a convolution), of the unit's output before anything
    that follows it, or of the gradient of the examples' mean loss at that output. What a layer gives in several calls
    of a pass is added up.

    Args:
        run: The run.
        model: Parameters and buffers to look at.
        ids: Training examples, without random augmentation.
        by: Which of the two.
        batch_size: Examples per pass.
    """
    if by not in ("outputs", "gradients"):
        raise ConfigurationError(f"by: expected 'outputs' or 'gradients', got {by!r}")
    layers = layers_of(run)
    sums = {layer.name: torch.zeros(layer.units, dtype=torch.float64) for layer in layers}
    examples = run.training.plain().subset(torch.tensor(sorted(ids)))
    with run.at(model) as loss:
        for places, batch in examples.batches(batch_size):
            with _watched(layers) as outputs:
                value = loss(batch)
            calls = [(layer, output) for layer, output in outputs if output.requires_grad or by == "outputs"]
            values: Sequence[Tensor | None] = [output for _, output in calls]
            if by == "gradients":
                values = torch.autograd.grad(value, [output for _, output in calls], allow_unused=True)
            for (layer, _), own in zip(calls, values, strict=True):
                if own is not None:
                    # The gradient of a batch's mean loss is over the batch's size, that of all over theirs.
                    scale = 1.0 if by == "outputs" else len(places) / len(examples)
                    sums[layer.name] += _mean(own.detach(), layer) * len(places) * scale
    return {name: (total / len(examples)).abs() for name, total in sums.items()}


def _mean(output: Tensor, layer: Layer) -> Tensor:
    return output.double().movedim(layer.axis, -1).reshape(-1, layer.units).mean(0).cpu()


@contextmanager
def _watched(layers: Sequence[Layer]) -> Iterator[list[tuple[Layer, Tensor]]]:
    outputs: list[tuple[Layer, Tensor]] = []

    def keep(layer: Layer) -> Any:
        return lambda module, inputs, output: outputs.append((layer, output))

    handles = [layer.module.register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
