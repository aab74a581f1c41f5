"""The kernel of a replayed step as graphs of tensor operations.

A step's forward pass, gradient and second derivative are traced once per batch shape. In a small model most of a
step's time is python's, and most of that is saved by running the graph, with the same numbers; ``compile=True`` has it
compiled by ``torch``'s inductor. Example weights enter as in the eager kernel, through the same taps.

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
from lightning_sgdinf.adjoint.step_graph import Compiler, StepGraph, uncompiled
from lightning_sgdinf.errors import NonFiniteError, UnsupportedRunError
from lightning_sgdinf.held_tensors import call_with
from lightning_sgdinf.log import MicroBatch, Step
from lightning_sgdinf.replay import Objective
from lightning_sgdinf.replay.pass_structure import PassStructure

GRAPHS = 4
"""Largest number of batch shapes that are traced or compiled; to compile takes seconds to minutes."""

WORTH_STEPS, SMALL = 256, 1 << 20
"""From how many steps on, and up to how many parameters, tracing pays: it takes as long as some hundred eager steps."""


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

    structure: str
    constants: tuple[Any, ...]
    tensors: tuple[Any, ...]
    eval_modules: tuple[str, ...]
    accumulation: int
    buffers: tuple[str, ...]
    queries: int


@dataclass(slots=True)
class Kernel:
    """The graphs of a step.

    Attributes:
        graph: First takes tensors and returns loss and gradients; then takes push rows and buffer adjoints, and returns
            second derivatives.
        present: Which parameters have a gradient.
        statistics: Names of running statistics that are read.
        buffers: Names of buffer adjoints.
        checks: How often it was compared with the eager kernel.
        structures: Of the pass, as the eager kernel saw it.
    """

    graph: StepGraph
    present: tuple[bool, ...]
    statistics: tuple[str, ...]
    buffers: tuple[str, ...]
    checks: int = 0
    structures: tuple[PassStructure, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelPass:
    """One pass by a kernel, up to the gradient.

    Attributes:
        kernel: It.
        grads: Gradient per parameter; ``None`` where there is none.
        kept: What the second derivatives need.
    """

    kernel: Kernel
    grads: list[Tensor | None]
    kept: list[Tensor]

    def products(self, push: Tensor, buffers: Mapping[str, Tensor]) -> Products:
        """Differentiate it once more.

        Args:
            push: Adjoint of the gradient, ``[Q, P]``.
            buffers: Adjoint of the buffers after the pass, ``[Q, *shape]`` by name.
        """
        kernel = self.kernel
        with torch.no_grad():
            flow = iter(kernel.graph.second(*self.kept, push, *buffers.values()))
        slopes = next(flow)
        hessian = [next(flow) for _ in kernel.present]
        statistics = {n: next(flow) for n in kernel.statistics}
        return Products(slopes, hessian, statistics, dict(zip(kernel.buffers, flow, strict=True)))


@dataclass(slots=True)
class CompiledSteps:
    """Makes the kernels of a walk's steps.

    Attributes:
        objective: The opened model.
        compiler: Turns a graph of tensor operations into a function; `uncompiled` leaves its numbers as they are.
        note: Why the eager kernel is used instead; empty while it is not.
    """

    objective: Objective
    compiler: Compiler
    note: str = ""
    _kernels: dict[_Signature, Kernel] = field(default_factory=dict)
    _last: _Signature | None = None
    _held: list[Tensor] = field(default_factory=list)

    @classmethod
    def wanted(cls, objective: Objective, steps: int, *, compile: bool | None) -> CompiledSteps | None:
        """Return what makes kernels for a walk of so many steps; ``None`` where the eager one is to be used.

        Args:
            objective: The opened model.
            steps: Of the walk.
            compile: As for the runner.
        """
        if compile:
            return cls(objective, inductor)
        pays = steps >= WORTH_STEPS and objective.vector.size <= SMALL
        return cls(objective, uncompiled) if compile is None and pays else None

    @property
    def rounds_otherwise(self) -> bool:
        """True if kernels round otherwise than the eager one."""
        return not self.note and self.compiler is not uncompiled

    def give_up(self, why: str) -> None:
        """Use the eager kernel from now on."""
        self.note = self.note or f"compile=True: the eager kernel was used: {why}"
        self._kernels.clear()

    def kernel(
        self, step: Step, micro: MicroBatch, batch: Any, buffers: Mapping[str, Tensor], queries: int
    ) -> Kernel | None:
        """Return the kernel for a batch; ``None`` if there is none for its shape.

        A shape is traced when two steps in a row have it, so the last, smaller batch of an epoch is not; and not
        before it is known whose the rows of the loss are; none is where every pass has to be looked at.
        """
        objective = self.objective
        if self.note or objective.orders.undecided or objective.audits.suspicious or objective.rows is not None:
            return None
        if self.objective.host.attributes is not None and (names := self.objective.host.attributes.varying):
            self.give_up(f"{', '.join(names[:3])} of the module may change from step to step")
            return None
        leaves, structure = tree_flatten(batch)
        if not all(map(_can_be_told_apart, leaves)):
            return None
        signature = _Signature(
            repr(structure),
            tuple((type(v), v) for v in leaves if not isinstance(v, Tensor)),
            tuple((type(v), tuple(v.shape), v.stride(), v.dtype) for v in leaves if isinstance(v, Tensor)),
            step.eval_modules,
            step.accumulation,
            tuple(buffers),
            queries,
        )
        repeated, self._last = signature == self._last, signature
        kernel = self._kernels.get(signature)
        if kernel is None and repeated and len(self._kernels) < GRAPHS:
            try:
                kernel = self._kernels[signature] = self._compile(signature, step, micro, leaves, structure)
            except Exception as error:  # whatever a compiler can fail with; the eager kernel does not need it
                self.give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
                return None
        return kernel

    def begin(self, kernel: Kernel, step: Step, micro: MicroBatch, batch: Any) -> KernelPass:
        """Run a step's kernel at the loaded state, up to the gradient.

        Raises:
            NonFiniteError: If the loss is NaN or infinite; names the step.
        """
        if kernel.graph.draws:
            random_state.restore(micro.stepped_with)
        leaves = [v for v in tree_flatten(batch)[0] if isinstance(v, Tensor)]
        with torch.no_grad():
            loss, *rest = kernel.graph.first(*self._tensors(), *leaves)
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the training loss of step {step.index} is {loss.item()}; replay stops here. Scores need a finite run."
            )
        flow = iter(rest)
        return KernelPass(kernel, [next(flow) if there else None for there in kernel.present], list(flow))

    def _tensors(self) -> list[Tensor]:
        """Return every parameter and buffer of the module, in the order of `_names`."""
        if not self._held:
            self._held = [p.detach() for p in self.objective.module.parameters()]
        return [*self._held, *(b.detach() for b in self.objective.buffers.values())]

    def _compile(
        self, signature: _Signature, step: Step, micro: MicroBatch, leaves: Sequence[Any], structure: TreeSpec
    ) -> Kernel:
        objective = self.objective
        if moving := sorted(objective.passes.moving):
            raise UnsupportedRunError(f"the pass moves buffers that the loss may read ({moving[0]})")
        if objective.per_example_loss is not None:
            raise UnsupportedRunError("the losses of examples are computed by per_example_loss")
        recipe = _Recipe(objective, signature, step, leaves, structure)
        early = [*self._tensors(), *(v for v in leaves if isinstance(v, Tensor))]
        weights, push, adjoints = self._examples_of_late(signature, len(micro.example_ids))
        examples = [*early, weights, push, *adjoints]
        objective.prepare(step, micro)
        before = random_state.numpy_state(), random_state.python_state()
        with objective.host.stand_in.timeless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(recipe, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
        if before != (random_state.numpy_state(), random_state.python_state()):
            raise UnsupportedRunError("training_step draws from numpy's or python's generator")
        graph.graph.eliminate_dead_code()
        places = {"ones": len(early), "late": len(early) + 1, "early": 1 + sum(recipe.present)}
        taken_apart = StepGraph.of(graph, examples, self.compiler, **places)
        return Kernel(taken_apart, recipe.present, recipe.statistics, recipe.buffers)

    def _examples_of_late(self, signature: _Signature, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return weights of a batch, and zeros in the place of a push and of the buffers' adjoints."""
        objective, queries = self.objective, signature.queries
        like = objective.parameters[0]
        weights = torch.ones(count, dtype=like.dtype, device=objective.host.device)
        push = torch.zeros(queries, objective.vector.size, dtype=like.dtype, device=objective.host.device)
        buffers = objective.buffers
        return weights, push, [buffers[n].new_zeros(queries, *buffers[n].shape) for n in signature.buffers]


class _Recipe:
    """The kernel as a function of plain tensors, to be traced; remembers what the order of its results means."""

    def __init__(
        self, objective: Objective, signature: _Signature, step: Step, leaves: Sequence[Any], structure: TreeSpec
    ) -> None:
        self._objective, self._signature, self._step = objective, signature, step
        self._leaves, self._structure = leaves, structure
        self._names = _names(objective)
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
        batch = tree_unflatten(leaves, self._structure)
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


_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


def _can_be_told_apart(leaf: Any) -> bool:
    """Return true if it is known of a part of a batch whether a graph that was traced with another one fits it."""
    if isinstance(leaf, Tensor):
        return leaf.layout is torch.strided and not leaf.is_quantized
    return type(leaf) in _PLAIN or leaf is True or leaf is False


def _names(objective: Objective) -> list[str]:
    """Return the name of every parameter and buffer of the module, each once."""
    return [*dict(objective.module.named_parameters()), *objective.buffers]
