"""Watch for frozen parameters that ``training_step`` itself moves, as those of a teacher that follows the model.

What examples do by way of them is part of the run, and is differentiated where they are buffers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_sgdinf.log import is_recordable

_LOOKS = 2  # batches of a fit that are looked at


class FollowerWatch:
    """Looks at the frozen parameters before and after a training step, in the first batches of a fit.

    Args:
        module: The LightningModule.
        remark: Called with a sentence about something to know.

    Attributes:
        names: Those that were told of.
    """

    def __init__(self, module: nn.Module, remark: Callable[[str], None]) -> None:
        self._module, self._remark = module, remark
        self._before: dict[str, tuple[int, int]] = {}
        self._left = _LOOKS
        self.names: set[str] = set()

    def before_step(self) -> None:
        """Note them as they are."""
        self._before = self._versions() if self._left else {}

    def after_step(self) -> None:
        """Tell of those that are no longer what they were."""
        if not self._left:
            return
        self._left -= 1
        now = self._versions()
        if moved := [name for name, version in self._before.items() if now.get(name, version) != version]:
            self._left = 0
            self.names |= {*moved}
            self._remark(
                f"training_step itself moves {', '.join(moved[:3])}{' ...' if len(moved) > 3 else ''}, which no "
                "gradient trains (a teacher that follows the model). What examples do by way of parameters like that "
                "is not differentiated, and scores will be refused; of buffers it is. Keep them in buffers "
                "(register_buffer) that training_step moves"
            )

    def _versions(self) -> dict[str, tuple[int, int]]:
        frozen = ((n, p) for n, p in self._module.named_parameters() if not p.requires_grad)
        return {n: (p._version, p.data_ptr() if is_recordable(p) else 0) for n, p in frozen}
