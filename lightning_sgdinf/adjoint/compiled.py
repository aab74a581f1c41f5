"""The kernel of a replayed step as one compiled graph.

A step's forward pass, gradient and second derivative are traced once per batch shape into a graph of plain tensor
operations, which ``torch``'s inductor compiles. Example weights enter as in the eager kernel, through the same taps.

A graph cannot follow python: what ``training_step`` reads besides tensors would be frozen at its value while tracing.
So tracing fails, and the eager kernel is used, if the step looks at the epoch, the global step or the batch index,
draws from numpy's or python's generator, or branches on values of tensors. Whatever slips through shows in the
comparison with the eager kernel, which is made on the first steps of a graph and at the end of every epoch, and where
a step leads elsewhere than recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_sgdinf import random_state
from lightning_sgdinf.adjoint.second_order import FirstOrder, Products, differentiate
from lightning_sgdinf.errors import NonFiniteError, UnsupportedRunError
from lightning_sgdinf.held_tensors import call_with
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay import Objective

GRAPHS = 4
"""Largest number of batch shapes that are compiled; each takes seconds to minutes."""

Compiler = Callable[[torch.fx.GraphModule, Sequence[Tensor]], Callable[..., Sequence[Tensor]]]


def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile by torch's inductor; random numbers are drawn as the eager kernel draws them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch._inductor.compile(graph, list(inputs), options={"fallback_random": True})
    return compiled  # type: ignore[return-value]


class _Unseen:
    """Stands for the batch index while tracing: a graph in which it was looked at would be wrong at the next batch."""

    def _refuse(self, *args: Any) -> Any:
        raise UnsupportedRunError("training_step looks at batch_idx")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __index__ = __float__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = __truediv__ = __sub__ = __rsub__ = _refuse
    __str__ = __repr__ = __format__ = __hash__ = _refuse  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class _Signature:
    """Everything that a graph was traced for."""

    structure: TreeSpec
    constants: tuple[Any, ...]
    tensors: tuple[Any, ...]
    eval_modules: tuple[str, ...]
    accumulation: int
    buffers: tuple[str, ...]
    queries: int


@dataclass(slots=True)
class Kernel:
    """One compiled graph of a step.

    Attributes:
        function: Takes tensors, push rows and buffer adjoints; returns loss, gradients and products.
        present: Which parameters have a gradient.
        statistics: Names of running statistics that are read.
        buffers: Names of buffer adjoints.
        checks: How often it was compared with the eager kernel.
    """

    function: Callable[..., Sequence[Tensor]]
    present: tuple[bool, ...]
    statistics: tuple[str, ...]
    buffers: tuple[str, ...]
    checks: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of a kernel.

    Attributes:
        grads: Gradient per parameter; ``None`` where there is none.
        products: Second derivatives.
    """

    grads: list[Tensor | None]
    products: Products


@dataclass(slots=True)
class CompiledSteps:
    """Compiles the kernel of a walk's steps.

    Attributes:
        objective: The opened model.
        compiler: Turns a graph of tensor operations into a function.
        note: Why the eager kernel is used instead; empty while it is not.
    """

    objective: Objective
    compiler: Compiler = inductor
    note: str = ""
    _kernels: dict[_Signature, Kernel] = field(default_factory=dict)
    _last: _Signature | None = None

    def give_up(self, why: str) -> None:
        """Use the eager kernel from now on."""
        self.note = self.note or f"compile=True: the eager kernel was used: {why}"
        self._kernels.clear()

    def kernel(
        self, step: Step, micro: MicroBatch, batch: Any, buffers: Mapping[str, Tensor], queries: int
    ) -> Kernel | None:
        """Return the kernel for a batch; ``None`` if there is none for its shape.

        A shape is compiled when two steps in a row have it, so the last, smaller batch of an epoch is not; and not
        before it is known whose the rows of the loss are; none is where every pass has to be looked at.
        """
        objective = self.objective
        if self.note or objective.orders.undecided or objective.audits.suspicious or objective.rows is not None:
            return None
        if self.objective.host.attributes is not None and (names := self.objective.host.attributes.varying):
            self.give_up(f"{', '.join(names[:3])} of the module may change from step to step")
            return None
        leaves, structure = tree_flatten(batch)
        signature = _Signature(
            structure,
            tuple(v for v in leaves if not isinstance(v, Tensor)),
            tuple((tuple(v.shape), v.stride(), v.dtype) for v in leaves if isinstance(v, Tensor)),
            step.eval_modules,
            step.accumulation,
            tuple(buffers),
            queries,
        )
        repeated, self._last = signature == self._last, signature
        kernel = self._kernels.get(signature)
        if kernel is None and repeated and len(self._kernels) < GRAPHS:
            try:
                kernel = self._kernels[signature] = self._compile(signature, step, micro, leaves)
            except Exception as error:  # whatever a compiler can fail with; the eager kernel does not need it
                self.give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
                return None
        return kernel

    def run(
        self, kernel: Kernel, step: Step, micro: MicroBatch, batch: Any, push: Tensor, buffers: Mapping[str, Tensor]
    ) -> Outcome:
        """Run a step's kernel at the loaded state.

        Raises:
            NonFiniteError: If the loss is NaN or infinite; names the step.
        """
        random_state.restore(micro.stepped_with)
        leaves = [v for v in tree_flatten(batch)[0] if isinstance(v, Tensor)]
        with torch.no_grad():
            loss, *rest = kernel.function(*self._inputs(leaves, len(micro.example_ids), push, buffers))
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the training loss of step {step.index} is {loss.item()}; replay stops here. Scores need a finite run."
            )
        flow = iter(rest)
        grads = [next(flow) if there else None for there in kernel.present]
        slopes = next(flow)
        hessian = [next(flow) for _ in kernel.present]
        statistics = {n: next(flow) for n in kernel.statistics}
        return Outcome(grads, Products(slopes, hessian, statistics, dict(zip(kernel.buffers, flow, strict=True))))

    def _inputs(
        self, leaves: Sequence[Tensor], count: int, push: Tensor, buffers: Mapping[str, Tensor]
    ) -> list[Tensor]:
        objective = self.objective
        weights = torch.ones(count, dtype=objective.parameters[0].dtype, device=objective.host.device)
        tensors = [t.detach() for t in _tensors(objective).values()]
        return [*tensors, *leaves, weights, push, *buffers.values()]

    def _compile(self, signature: _Signature, step: Step, micro: MicroBatch, leaves: Sequence[Any]) -> Kernel:
        objective = self.objective
        if moving := sorted(objective.passes.moving):
            raise UnsupportedRunError(f"the pass moves buffers that the loss may read ({moving[0]})")
        if objective.per_example_loss is not None:
            raise UnsupportedRunError("the losses of examples are computed by per_example_loss")
        recipe = _Recipe(objective, signature, step, leaves)
        tensors = [v for v in leaves if isinstance(v, Tensor)]
        shapes = {n: b.shape for n, b in objective.buffers.items()}
        floating = objective.parameters[0].dtype
        examples = self._inputs(
            tensors,
            len(micro.example_ids),
            torch.zeros(signature.queries, objective.vector.size, dtype=floating, device=objective.host.device),
            {
                n: torch.zeros(signature.queries, *shapes[n], dtype=objective.buffers[n].dtype)
                for n in signature.buffers
            },
        )
        objective.prepare(step, micro)
        before = random_state.numpy_state(), random_state.python_state()
        with objective.host.stand_in.timeless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(recipe, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
        if before != (random_state.numpy_state(), random_state.python_state()):
            raise UnsupportedRunError("training_step draws from numpy's or python's generator")
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return Kernel(self.compiler(graph, examples), recipe.present, recipe.statistics, recipe.buffers)


class _Recipe:
    """The kernel as a function of plain tensors, to be traced; remembers what the order of its results means."""

    def __init__(self, objective: Objective, signature: _Signature, step: Step, leaves: Sequence[Any]) -> None:
        self._objective, self._signature, self._step = objective, signature, step
        self._leaves = leaves
        self._names = list(_tensors(objective))
        self.present: tuple[bool, ...] = ()
        self.statistics: tuple[str, ...] = ()
        self.buffers: tuple[str, ...] = ()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        objective, signature = self._objective, self._signature
        flow = iter(inputs)
        named = {n: next(flow) for n in self._names}
        leaves = [next(flow) if isinstance(v, Tensor) else v for v in self._leaves]
        weights, push = next(flow).detach().requires_grad_(), next(flow)
        adjoints = dict(zip(signature.buffers, flow, strict=True))
        trained = {n: named[n].detach().requires_grad_() for n in objective.vector.names}
        parameters = list(trained.values())
        shell = _Shell(objective, self._step)
        batch = tree_unflatten(leaves, signature.structure)
        trace = call_with(shell, {f"module.{n}": v for n, v in {**named, **trained}.items()}, batch, weights)
        with objective.passes.phase.taking_gradient():
            grads = torch.autograd.grad(trace.loss, parameters, create_graph=True, allow_unused=True)
        first = FirstOrder(trace.loss, weights, trace.statistics, grads)
        products = differentiate(first, parameters, objective.vector.split(push), adjoints)
        self.present = tuple(g is not None for g in grads)
        self.statistics, self.buffers = tuple(products.statistics), tuple(products.buffers)
        results = [trace.loss, *(g for g in grads if g is not None), products.slopes, *products.hessian]
        return [t.detach() for t in (*results, *products.statistics.values(), *products.buffers.values())]


class _Shell(nn.Module):
    """A step as a module's forward pass, which is what ``call_with`` can call."""

    def __init__(self, objective: Objective, step: Step) -> None:
        super().__init__()
        self.module = objective.module
        self._trace = lambda batch, weights: objective.forward(step, _Unseen(), batch, weights, statistics=True)

    def forward(self, batch: Any, weights: Tensor) -> Any:
        return self._trace(batch, weights)


def _tensors(objective: Objective) -> dict[str, Tensor]:
    """Return every parameter and buffer of the module by name, each once."""
    return {**dict(objective.module.named_parameters()), **objective.buffers}
