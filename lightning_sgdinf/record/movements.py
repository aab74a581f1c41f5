"""Tell of tensors that something other than the optimizer has moved, and of what that means for a replay."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from lightning_sgdinf.log import Step


class Movements:
    """Tells of what has moved, of each once.

    Args:
        known: Names of frozen parameters that were told of already.
        problem: Called with a sentence when something makes the run impossible to replay.
        remark: Called with a sentence about something to know.

    Attributes:
        remark: The same.
    """

    def __init__(self, known: Container[str], *, problem: Callable[[str], None], remark: Callable[[str], None]) -> None:
        self._known, self._problem, self.remark = known, problem, remark
        self._told: set[str] = set()
        self._edits_told = False

    def of_constants(self, names: Sequence[str], index: int) -> None:
        """Tell of tensors that no optimizer holds and that moved before a step."""
        self._told |= {*names}
        if news := [name for name in names if name not in self._known]:
            self._problem(_moved(news, index))

    def of_trained(self, step: Step) -> None:
        """Tell, once, of parameters of the optimizer that something else has changed before a step."""
        names = [label.removeprefix("param ") for label in step.changed if label.startswith("param ")]
        if not self._edits_told and (news := [name for name in names if name not in self._told]):
            self._edits_told = True
            self.remark(
                f"something other than the optimizer changed {', '.join(news[:3])} before step {step.index} (a "
                "callback or hook that edits weights), and what that does is not known, so that no replay goes back "
                "across it; estimators that stay behind the last such step (LastEpochs) or look at the final model "
                "alone (FinalParameters, KohLiang) answer all the same"
            )


def _moved(names: Sequence[str], index: int) -> str:
    """Return what it means that something other than the optimizer moved constants, without full stop."""
    them = "them" if len(names) > 1 else "it"
    return (
        f"{', '.join(names[:5])} changed in training before step {index} although no optimizer holds {them}. "
        f"What examples do to other weights by way of {them} is not known, so no replay goes back across that step; "
        "estimators that look at the final model alone (FinalParameters, KohLiang) answer all the same. Of buffers "
        "that training_step itself moves it is known"
    )
