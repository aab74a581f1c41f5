"""The arithmetic of a step as two graphs of plain tensor operations: gradient first, second derivatives when the push
is known.

The operations are those that autograd does, so the numbers are the same to the last bit; what they are done by is
different: no module is called, no tape is kept, and what cannot change from step to step is done once. That the weights
of examples are all one is known beforehand, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

_CONSTANT_BYTES = 1 << 20
"""Of results that are kept from step to step, each."""

_FILLED = {aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.new_zeros.default: 0, aten.new_ones.default: 1}
"""Operations whose result depends on nothing but the shape of their argument."""

Compiler = Callable[[GraphModule, Sequence[Tensor]], Callable[..., Sequence[Tensor]]]


def uncompiled(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return what runs a graph operation by operation."""
    del inputs
    return graph.forward


@dataclass(frozen=True, slots=True)
class StepGraph:
    """The two graphs.

    Attributes:
        first: Takes the inputs before ``late``; returns the early results, then what ``second`` needs of it.
        second: Takes what it needs of the first, then the late inputs; returns the other results.
        early: Number of results of the first.
        draws: It draws random numbers.
    """

    first: Callable[..., Sequence[Tensor]]
    second: Callable[..., Sequence[Tensor]]
    early: int
    draws: bool

    @classmethod
    def of(
        cls, traced: GraphModule, inputs: Sequence[Tensor], compiler: Compiler, *, ones: int, late: int, early: int
    ) -> StepGraph:
        """Take a traced graph apart, and compile both halves.

        Args:
            traced: Takes the inputs, returns a list.
            inputs: Examples of them.
            compiler: Makes a function of a graph.
            ones: The place of an input that is all ones and that nobody passes.
            late: The place from which on inputs are known late; ``ones < late``.
            early: Number of results that are asked for before these are known; they must not depend on them.
        """
        graph = traced.graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        constants = {placeholders[ones]: inputs[ones]}
        if not any(map(_writes, graph.nodes)):
            _simplify(graph, constants)
        constants |= {n: getattr(traced, n.target) for n in graph.nodes if n.op == "get_attr"}
        known_late = set(placeholders[late:])
        for node in graph.nodes:
            if node.op == "call_function" and any(source in known_late for source in node.all_input_nodes):
                known_late.add(node)
        (output,) = (node for node in graph.nodes if node.op == "output")
        results: list[Node] = list(output.args[0])
        first, second = results[:early], results[early:]
        body = [node for node in graph.nodes if node.op == "call_function"]
        behind = [node for node in body if node in known_late]
        sources = [source for node in behind for source in node.all_input_nodes] + second
        between = [n for n in dict.fromkeys(sources) if n not in known_late and n not in constants]
        handed = placeholders[:ones] + placeholders[ones + 1 : late]
        before = [node for node in body if node not in known_late and node not in constants]
        values = [v for place, v in enumerate(inputs[:late]) if place != ones]
        with torch.no_grad():
            front = _Half.of(handed, before, first + between, constants).compiled(compiler, values)
            back = _Half.of(between + placeholders[late:], behind, second, constants)
            kept = list(front(*values))[early:]
            return cls(front, back.compiled(compiler, [*kept, *inputs[late:]]), early, any(map(_draws, graph.nodes)))


@dataclass(frozen=True, slots=True)
class _Half:
    """A part of a graph.

    Attributes:
        module: Takes its inputs, then the constants.
        constants: That it needs.
    """

    module: GraphModule
    constants: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, inputs: Sequence[Node], body: Iterable[Node], results: Sequence[Node], constants: dict[Node, Tensor]
    ) -> _Half:
        """Make a graph of some nodes of another."""
        graph, new = Graph(), dict[Node, Node]()
        for node in inputs:
            new[node] = graph.placeholder(node.name)
        nodes = list(body)
        needed = dict.fromkeys(n for n in [s for node in nodes for s in node.all_input_nodes] + list(results))
        used = [n for n in needed if n in constants and n not in new]
        for node in used:
            new[node] = graph.placeholder(node.name)
        for node in nodes:
            new[node] = graph.node_copy(node, lambda source: new[source])
        own = {n: graph.call_function(aten.clone.default, (new[n],)) for n in results if n in used}
        graph.output([own.get(node, new[node]) for node in results])
        graph.eliminate_dead_code()
        return cls(GraphModule(torch.nn.Module(), graph), tuple(constants[n] for n in used))

    def compiled(self, compiler: Compiler, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """Return what runs it, given its inputs alone."""
        constants = self.constants
        function = compiler(self.module, [*inputs, *constants])
        return lambda *given: function(*given, *constants)


def _simplify(graph: Graph, constants: dict[Node, Tensor]) -> None:
    """Leave out what changes no number, and compute once what depends on no input; ``constants`` grows by that."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _draws(node):
            continue
        if (same := _same(node, constants)) is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            continue
        key = (node.target, _key(node.args), _key(tuple(sorted(node.kwargs.items()))))
        if (twin := seen.setdefault(key, node)) is not node:
            node.replace_all_uses_with(twin)
            graph.erase_node(node)
        elif (value := _constant(node, constants)) is not None:
            constants[node] = value
    graph.eliminate_dead_code()


def _same(node: Node, constants: dict[Node, Tensor]) -> Node | None:
    """Return the node whose value a node has, too."""
    target, args = node.target, node.args
    source = args[0] if args and isinstance(args[0], Node) else None
    if source is None:
        return None
    if target in (aten.detach.default, aten.alias.default):
        return source
    if target is aten.t.default and source.target is aten.t.default and isinstance(source.args[0], Node):
        return source.args[0]
    if target in (aten.view.default, aten.expand.default) and _looks(node) == _looks(source):
        return source
    if target in (aten.mul.Tensor, aten.add.Tensor) and not node.kwargs:
        neutral = 1.0 if target is aten.mul.Tensor else 0.0
        for one, other in ((args[0], args[1]), (args[1], args[0])):
            if isinstance(other, Node) and _is_filled(one, neutral, constants) and _looks(node) == _looks(other):
                return other
    if target is aten.index_put.default and len(args) == 4 and args[3] is True:
        return _spread(node, constants)
    return None


def _spread(node: Node, constants: dict[Node, Tensor]) -> Node | None:
    """Return values that are added to zeros, each in its place."""
    into, places, values, _ = node.args
    if not isinstance(places, (list, tuple)) or len(places) != 1 or not isinstance(values, Node):
        return None
    (place,) = places
    where = constants.get(place) if isinstance(place, Node) else None
    alike = _looks(node) == _looks(values) and len(_looks(node)[0]) == 1
    if where is None or not alike or not _is_filled(into, 0.0, constants):
        return None
    return values if torch.equal(where, torch.arange(len(where), device=where.device)) else None


def _is_filled(value: Any, number: float, constants: dict[Node, Tensor]) -> bool:
    tensor = constants.get(value) if isinstance(value, Node) else None
    return tensor is not None and tensor.is_floating_point() and bool((tensor == number).all())


def _constant(node: Node, constants: dict[Node, Tensor]) -> Tensor | None:
    """Return the value of a node that depends on no input."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.numel() * value.element_size() > _CONSTANT_BYTES:
        return None
    if (number := _FILLED.get(node.target)) is not None:  # type: ignore[call-overload]
        strided = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return strided.fill_(number)
    if "empty" in str(node.target) or any(source not in constants for source in node.all_input_nodes):
        return None
    with torch.no_grad():
        args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda source: constants[source])
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


def _looks(node: Node) -> tuple[Any, ...]:
    """Return shape, strides and type of a node's value."""
    value = node.meta.get("val")
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else ((), node)


def _key(value: Any) -> Any:
    """Return something that is equal for equal arguments, and can be hashed."""
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(_key, value))
    return value if isinstance(value, Node) else (type(value).__name__, str(value))


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _draws(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
