"""Parameters that no gradient trains and that ``training_step`` itself moves, such as those of a teacher."""

from __future__ import annotations

import torch

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import Step, Trajectory


def expect_no_followers(log: Trajectory) -> None:
    """Refuse a run in which ``training_step`` moves what nothing differentiates: every pass would move it again.

    Raises:
        UnsupportedRunError: It does; names the parameters.
    """
    if names := followers_in(log):
        raise UnsupportedRunError(
            f"training_step itself moves {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}, which no gradient "
            "trains (a teacher that follows the model), and what examples do by way of parameters like that is not "
            "differentiated. Of buffers it is: keep them in buffers (register_buffer) that training_step moves, and "
            "train again."
        )


def followers_in(log: Trajectory) -> tuple[str, ...]:
    """Return the names of parameters that the steps between the last two stored states moved without the optimizer.

    Those that something moved between two steps are in the record of the step, and no part of the result.
    """
    stored = [int(index) for index in log.state_indices]
    if len(stored) < 2 or stored[-1] != len(log):
        return ()
    start, stop = stored[-2:]
    steps = list(log.steps(start, stop))
    before, after = log.state(start).params, log.state(stop).params
    explained = set().union(*(_trained(step) | _changed(step) for step in steps))
    return tuple(
        name
        for name, value in after.items()
        if name not in explained and name in before and not torch.equal(value, before[name])
    )


def _trained(step: Step) -> set[str]:
    held = {name for group in step.groups for name in group.params}
    return held - set(step.without_gradient or ())


def _changed(step: Step) -> set[str]:
    return {label.partition(" ")[2] for label in step.changed}
