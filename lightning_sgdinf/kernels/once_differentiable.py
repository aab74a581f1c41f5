"""Operations of a pass that torch differentiates once, seen in its graph before anything is differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

WAYS_AROUND = (
    "What works: the same written with other operations of torch's; of a loss, it is enough to give the runner what "
    "each example adds to it, InfluenceRunner(per_example_loss=...). With no change, InfluenceRunner.counterfactuals "
    "and InfluenceRunner.update train again without examples, and baselines rank"
)
"""What to do about such an operation, as sentences without the last full stop."""

OPERATIONS: Mapping[str, str] = {
    "FakeQuantizeLearnablePerChannelAffineBackward0": "torch._fake_quantize_learnable_per_channel_affine",
    "FakeQuantizeLearnablePerTensorAffineBackward0": "torch._fake_quantize_learnable_per_tensor_affine",
    "MaskedSoftmaxBackward0": "torch._masked_softmax",
    "SegmentReduceBackward0": "torch.segment_reduce",
    "SparseLogSoftmaxBackward0": "torch.sparse.log_softmax",
    "SparseMmReduceImplBackward0": "torch.sparse.mm with a reduction",
    "SparseSoftmaxBackward0": "torch.sparse.softmax",
    "SparseSumBackward0": "torch.sparse.sum",
    "StandardGammaBackward0": "torch._standard_gamma (draws from Gamma, Chi2 and StudentT distributions)",
}
"""By the name of their node, those of torch's own that no other kernel here has a formula for."""

_ONCE = once_differentiable(lambda *args: None).__code__
"""The code of every backward that is marked as differentiable once."""


def once_differentiable_in(loss: Tensor) -> tuple[str, ...]:
    """Return the names of the operations in the graph of a loss that are differentiated once, sorted."""
    nodes: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        if (node := waiting.pop()) is not None and node not in nodes:
            nodes.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    names = set()
    for kind in {type(node) for node in nodes}:
        if not issubclass(kind, BackwardCFunction):
            names.add(OPERATIONS.get(kind.__name__, ""))
        elif (own := getattr(kind, "_forward_cls")).backward.__code__ is _ONCE:  # noqa: B009
            names.add(own.__name__)
    return tuple(sorted(names - {""}))
