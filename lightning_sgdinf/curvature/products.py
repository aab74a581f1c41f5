r"""The curvature of the mean training loss at a model, by its products.

The mean is over all ``N`` training examples, or over ``n`` chosen ones, :math:`F = \frac1n \sum_j l_j`, each
:math:`l_j` the loss that ``training_step`` gives the example, in eval mode. Its curvature is the Hessian, or the
generalised Gauss-Newton matrix: with ``z`` the inputs of the loss functions, :math:`J = \partial z / \partial\theta`,

.. math:: G = J^T \frac{\partial^2 F}{\partial z^2} J + \frac{\partial^2 F}{\partial\theta^2}\Big|_z,

which leaves out the curvature of the network itself and is positive semi-definite for the usual losses (the second term
is that of penalties). Cost of a product: one pass forward, one backward and, per row, one (Hessian) or two more over
the training set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint import TOGETHER, FirstOrder, differentiate, pull_rows
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.kernels import Interceptor
from lightning_sgdinf.log import Draw, MicroBatch, Step
from lightning_sgdinf.replay import LOSSES, Edit, Examples, Objective

Kind = Literal["hessian", "gauss_newton"]


class TrainingCurvature:
    """Products with the curvature, and the examples' slopes, at the loaded model.

    Args:
        objective: The opened model, with the parameters to look at loaded.
        like: A recorded step, for what ``training_step`` may ask the Trainer.
        examples: The ``n`` training examples that the mean is over: ids, or ``N`` for all of them.
        kind: Hessian or Gauss-Newton matrix.
        batch_size: Examples per pass.
        edit: Changes batches before they are taken: other labels, other inputs.
        data: Examples that take the place of the run's training examples; ids are theirs then.
        memory_bytes: Batches are kept in memory as far as this goes; the others are made anew for each product.

    Raises:
        ConfigurationError: The loss of a batch is not the mean of its examples' losses.
    """

    def __init__(
        self,
        objective: Objective,
        like: Step,
        examples: int | Tensor,
        *,
        kind: Kind = "hessian",
        batch_size: int = 500,
        edit: Edit | None = None,
        data: Examples | None = None,
        memory_bytes: int = 1 << 30,
    ) -> None:
        self._objective = objective
        quiet = tuple(n for n, _ in objective.module.named_modules())
        self._step = replace(like, micro_batches=(), accumulation=1, eval_modules=quiet)
        ids = torch.arange(examples) if isinstance(examples, int) else examples
        self._examples, self._kind, self._edit, self._data = len(ids), kind, edit, data
        self._random = random_state.capture()  # every pass over the data sees the same augmentation
        self._ids = ids.split(batch_size)
        self._memory_left = memory_bytes
        self._kept: dict[int, Any] = {}
        self._check_means()

    @property
    def examples(self) -> int:
        """Return the number of examples that the mean is over."""
        return self._examples

    @property
    def batches(self) -> int:
        """Return the number of batches the training set is cut into."""
        return len(self._ids)

    def product(self, rows: Tensor) -> Tensor:
        """Multiply the whole curvature by each row, ``[Q, P]``."""
        total = torch.zeros_like(rows)
        for number, ids in enumerate(self._ids):
            total.add_(self.of_batch(rows, number), alpha=len(ids) / self._examples)
        return total

    def of_batch(self, rows: Tensor, number: int) -> Tensor:
        """Multiply the curvature of one batch's mean loss by each row, ``[Q, P]``."""
        if self._kind == "gauss_newton":
            return self._gauss_newton(rows, number)
        return self._objective.vector.join_rows(self._second_order(rows, number, curvature=True)[1])

    def slopes(self, rows: Tensor) -> Tensor:
        r"""Compute :math:`\langle\nabla l_j, row\rangle` for every example, ``[n, Q]`` in float64."""
        slopes = []
        for number, ids in enumerate(self._ids):
            shares = self._second_order(rows, number, curvature=False)[0]
            slopes.append(shares.T.to("cpu", torch.float64) * len(ids))
        return torch.cat(slopes)

    def gradient(self) -> Tensor:
        """Compute the mean gradient of the examples' own losses, ``[P]``: without what belongs to none (penalties)."""
        objective = self._objective
        total = torch.zeros(objective.vector.size, dtype=objective.parameters[0].dtype, device=objective.host.device)
        for number, ids in enumerate(self._ids):
            for weight, sign in ((1.0, 1.0), (0.0, -1.0)):
                loss, _ = self._traced(number, weight=weight)
                own = zeros_for_none(objective.gradient(loss), objective.parameters)
                total.add_(objective.vector.join(own), alpha=sign * len(ids) / self._examples)
        return total

    def _second_order(self, rows: Tensor, number: int, *, curvature: bool) -> tuple[Tensor, list[Tensor]]:
        """Compute slopes ``[Q, B]`` of a batch, each example's share of the mean, and Hessian-vector products."""
        objective = self._objective
        loss, weights = self._traced(number)
        first = FirstOrder(loss, weights, None, objective.gradient(loss, create_graph=True))
        pushes = objective.vector.split(rows)
        together = len(rows) >= TOGETHER and objective.queries_together
        products = differentiate(first, objective.parameters, pushes, {}, curvature=curvature, together=together)
        return products.slopes, products.hessian

    def _gauss_newton(self, rows: Tensor, number: int) -> Tensor:
        objective = self._objective
        parameters = objective.parameters
        cut = _Cut()
        loss, _ = self._traced(number, cut)
        cut.keep_used(loss)
        if not cut.leaves:
            raise ConfigurationError(
                "the Gauss-Newton matrix needs a loss function of torch.nn.functional, or InfluenceRunner(tap=...) "
                "naming the sub-module whose output the loss is computed from; use curvature='hessian'"
            )
        pushes = objective.vector.split(rows)
        # J v by pulling back twice: a pull-back is linear in its cotangent, and the transpose of that is J.
        dummies = [torch.zeros_like(z, requires_grad=True) for z in cut.values]
        pulled = torch.autograd.grad(cut.values, parameters, dummies, create_graph=True, allow_unused=True)
        forward = _bent(pulled, dummies, pushes)
        count = len(cut.leaves)
        with objective.passes.phase.taking_gradient():
            slopes = torch.autograd.grad(loss, [*cut.leaves, *parameters], create_graph=True, allow_unused=True)
        curved = _bent(slopes[:count], cut.leaves, forward)
        back = pull_rows(cut.values, parameters, curved, len(rows))
        penalty = _bent(slopes[count:], parameters, pushes)
        return objective.vector.join_rows([a + b for a, b in zip(back, penalty, strict=True)])

    def _traced(self, number: int, cut: _Cut | None = None, *, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute the mean loss of a batch; return it and the weights that entered, all of the same value."""
        objective, ids = self._objective, self._ids[number]
        like = objective.parameters[0]
        weights = torch.full((len(ids),), weight, dtype=like.dtype, device=like.device, requires_grad=True)
        micro = MicroBatch(batch_idx=number, draws=(Draw(example_ids=ids.numpy(), random=self._random),))
        with ExitStack() as stack:
            if cut is not None and objective.tap is None:
                stack.enter_context(Interceptor(dict.fromkeys(LOSSES, cut.handle)))
            elif cut is not None and objective.tap is not None:
                stack.enter_context(_cut_output(objective.module.get_submodule(objective.tap), cut))
            return objective.trace(self._step, micro, self._batch(number, micro), weights).loss, weights

    def _batch(self, number: int, micro: MicroBatch) -> Any:
        if number not in self._kept:
            if self._data is None:
                batch = self._objective.batch(self._step, micro)
            else:
                batch = self._data.batch(self._ids[number])
            if self._edit is not None:
                batch = self._edit(batch, micro.example_ids)
            size = sum(t.numel() * t.element_size() for t in tree_leaves(batch) if isinstance(t, Tensor))
            if size > self._memory_left:
                return batch
            self._memory_left -= size
            self._kept[number] = batch
        return self._kept[number]

    def _check_means(self) -> None:
        """Compare the first example's gradient as a member of its batch with that by itself."""
        first = self._ids[0]
        if len(first) == 1:
            return
        whole, self._ids = self._ids, first[:1].split(1)
        objective, (loss, _) = self._objective, self._traced(0)
        alone = objective.vector.join(zeros_for_none(objective.gradient(loss), objective.parameters))[None]
        slope_alone = float(self._second_order(alone, 0, curvature=False)[0])
        self._kept.clear()
        self._ids = whole
        slope_in_batch = float(self._second_order(alone, 0, curvature=False)[0][0, 0]) * len(first)
        if not math.isfinite(slope_alone):
            raise NonFiniteError(
                f"the final model's loss on training example {int(first[0])} has no finite gradient; influence needs a "
                "finite model"
            )
        if not abs(slope_in_batch - slope_alone) <= 1e-3 * max(abs(slope_alone), abs(slope_in_batch)):
            raise ConfigurationError(
                f"the loss of a batch is not the mean of its examples' losses (slope of example {int(first[0])}: "
                f"{slope_alone:.3g} by itself, {slope_in_batch:.3g} in a batch of {len(first)}): class weights, a sum, "
                "or rows that see each other. Use batch_size=1."
            )


class _Cut:
    """Cuts the graph at the inputs of loss functions: the loss is computed from leaves with the same values.

    Attributes:
        values: The inputs, with the network's graph.
        leaves: Copies of them, from which the loss was computed.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a loss function at leaves in the place of its inputs."""
        return func(*(self.apply(a) for a in args), **{k: self.apply(v) for k, v in kwargs.items()})

    def keep_used(self, loss: Tensor) -> None:
        """Forget cuts that the loss does not come from: of passes that only found out whose row is whose."""
        slopes = torch.autograd.grad(loss, self.leaves, retain_graph=True, allow_unused=True) if self.leaves else ()
        used = [place for place, slope in enumerate(slopes) if slope is not None]
        self.values, self.leaves = [self.values[i] for i in used], [self.leaves[i] for i in used]

    def apply(self, value: Any) -> Any:
        """Return a leaf in the place of a tensor that carries a gradient; anything else as it is."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        self.values.append(value)
        self.leaves.append(value.detach().requires_grad_())
        return self.leaves[-1]


@contextmanager
def _cut_output(part: nn.Module, cut: _Cut) -> Iterator[None]:
    handle = part.register_forward_hook(lambda module, inputs, output: tree_map_only(Tensor, cut.apply, output))
    try:
        yield
    finally:
        handle.remove()


def _bent(slopes: Sequence[Tensor | None], at: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate slopes, linear or not, once more: ``[Q, *shape]`` per tensor of ``at``."""
    pairs = [(s, r.to(s.dtype)) for s, r in zip(slopes, rows, strict=True) if s is not None and s.requires_grad]
    return pull_rows([s for s, _ in pairs], at, [r for _, r in pairs], len(rows[0]), keep=True)


def zeros_for_none(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients, zeros where there is none."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, like, strict=True)]
