"""Watch for operations that torch differentiates once: a walk stops at them, and a training that is over is no help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_sgdinf.kernels import WAYS_AROUND, once_differentiable_in


class OperationWatch:
    """Looks at the graph of a loss, in the first batch of a fit and of each of its epochs; nothing is computed.

    Args:
        remark: Called with a sentence about something to know.
    """

    def __init__(self, remark: Callable[[str], None]) -> None:
        self._remark = remark
        self._looked = False

    def look(self, output: Any, batch_idx: int) -> None:
        """Look at what ``training_step`` has returned."""
        if self._looked and batch_idx:
            return
        self._looked = True
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, Tensor) and (names := once_differentiable_in(loss)):
            self._remark(
                f"the training step calls {', '.join(names)}, of which torch has no second derivative, so that no walk "
                f"goes back through it, by whatever estimator. {WAYS_AROUND}"
            )
