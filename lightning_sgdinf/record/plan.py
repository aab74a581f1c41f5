"""Forecast what recording a run and replaying it will cost, for every policy by which states are kept.

With ``T`` steps, of which the policy stores the state before every ``k``-th, and with what was measured of one step:

    log bytes       = `LogCosts.size`
    write rate      = log bytes / (T * seconds of a training step)
    replay seconds  = paid once + T * seconds of a step back + steps taken again * seconds of a step forward
    replay memory   = peak of a step back + rebuilt states that are held

The steps taken again are those of the binomial schedule (`lightning_sgdinf.checkpointing`): ``T`` where all states of a
stretch fit into the memory for rebuilt states. This is without the certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_sgdinf.checkpointing import MEMORY_BYTES, held_in, states_in, steps_again
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log.expected_size import LogCosts
from lightning_sgdinf.log.watch import readable_bytes, readable_seconds
from lightning_sgdinf.record.budget import Budget, Prospect, make_plan
from lightning_sgdinf.record.keep import Every, Final, Keep, LastEpochs, parse_keep


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCosts:
    """The costs of a step of a run, as far as they were measured; the others are ``None``.

    Attributes:
        parameters: Trained numbers, ``P``.
        state_bytes: Of an uncompressed state: parameters, buffers, and what the optimizer keeps.
        log: What the parts of its log take.
        steps_per_epoch: Optimizer steps.
        step_seconds: Wall time of a training step, with its batch and with the recorder on.
        back_seconds: Of a step of the walk backwards.
        forward_seconds: Of a recorded step taken again.
        once_seconds: Of what a replay does once: opening, audit, query.
        fit_bytes: Memory that the training takes at its peak, beside what the process had before.
        walk_bytes: Likewise the walk, with every state read from the log.
        repeatable: A step taken again gives the same bits.
        measured_on: What the figures were measured on, in sentences.
    """

    parameters: int
    state_bytes: int
    log: LogCosts
    steps_per_epoch: int | None = None
    step_seconds: float | None = None
    back_seconds: float | None = None
    forward_seconds: float | None = None
    once_seconds: float | None = None
    fit_bytes: int | None = None
    walk_bytes: int | None = None
    repeatable: bool = True
    measured_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPlan:
    """The cost of one policy.

    Attributes:
        keep: Its name.
        states: Stored ones, the final one not counted.
        log_bytes: Size of the log.
        write_rate: Bytes per second of training.
        replay_steps: Steps that the walk goes back.
        rebuilt: Steps that it takes again, to rebuild states.
        replay_seconds: Of the walk, without the certificate.
        replay_bytes: Memory it takes at its peak.
        remark: What it serves; empty if everything.
    """

    keep: str
    states: int
    log_bytes: int
    write_rate: float | None
    replay_steps: int
    rebuilt: int
    replay_seconds: float | None
    replay_bytes: int | None
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The cost of recording and replaying a run, for every policy.

    Attributes:
        steps: Optimizer steps of the run, ``T``.
        costs: Of a step.
        policies: What each costs.
    """

    steps: int
    costs: RunCosts
    policies: tuple[KeepPlan, ...]

    @property
    def training_seconds(self) -> float | None:
        """Return the wall time of the training, with the recorder on, validation not counted."""
        return None if self.costs.step_seconds is None else self.steps * self.costs.step_seconds

    def __getitem__(self, keep: str) -> KeepPlan:
        """Return what a policy costs, by its name.

        Raises:
            KeyError: It is not in the plan.
        """
        for policy in self.policies:
            if policy.keep == keep:
                return policy
        raise KeyError(f"{keep!r} is not in the plan, which has {', '.join(repr(p.keep) for p in self.policies)}")

    def __str__(self) -> str:
        return "\n".join(_text(self))


def make_run_plan(
    costs: RunCosts, *, steps: int, keeps: Sequence[str | Keep | Budget], memory_bytes: int = MEMORY_BYTES
) -> RunPlan:
    """Return what a run will cost under each of several policies.

    Args:
        costs: Of a step.
        steps: Optimizer steps of the run.
        keeps: The policies; one that needs the length of an epoch is left out where that is unknown.
        memory_bytes: For rebuilt states in the replay, as `InfluenceRunner` is given it.
    """
    rows: dict[str, KeepPlan] = {}
    for given in keeps:
        policy = parse_keep(given)
        keep = _within(policy, costs, steps) if isinstance(policy, Budget) else policy
        if isinstance(keep, LastEpochs) and costs.steps_per_epoch is None:
            continue
        label = str(keep) if keep is policy else f"{policy} -> {keep}"
        rows.setdefault(label, _row(label, keep, costs, steps, memory_bytes))
    return RunPlan(steps=steps, costs=costs, policies=tuple(rows.values()))


def default_policies(steps: int, costs: RunCosts) -> tuple[Keep, ...]:
    """Return the policies that a plan shows if nobody says otherwise."""
    epochs = [] if costs.steps_per_epoch is None or costs.steps_per_epoch >= steps else [LastEpochs(1)]
    return (Every(1), *(Every(k) for k in (10, 100, 1000) if k < steps), *epochs, Final())


def _row(label: str, keep: Keep, costs: RunCosts, steps: int, memory_bytes: int) -> KeepPlan:
    remark = ""
    if isinstance(keep, Every):
        stored, distance, walked = -(-steps // keep.k), keep.k, steps
        stretches = [(keep.k, steps // keep.k), (max(1, steps % keep.k), 1)]
    elif isinstance(keep, Final):
        stored, distance, walked, stretches, remark = 0, 1, 0, [], "methods of the final model alone"
    elif isinstance(keep, LastEpochs):
        walked = min(steps, keep.n * (costs.steps_per_epoch or steps))
        stored, distance, stretches = walked + (walked < steps), 1, []
        remark = f"replay of the last {keep.n} epoch{'s' * (keep.n > 1)}; the rest rebuilds {steps - walked:,} states"
    else:
        indices = [*_stored_by(keep, steps, costs.steps_per_epoch)]
        ends = [*indices, steps]
        stretches = [(after - before, 1) for before, after in pairwise(ends)]
        walked = steps - indices[0] if indices else 0
        stored, distance = len(indices), max(1, round(walked / max(1, len(indices))))
    max_states = states_in(memory_bytes, costs.state_bytes)
    held = held_in(max_states)
    again = sum(count * steps_again(length, held) for length, count in stretches)
    longest = max((length for length, count in stretches if count), default=1)
    in_memory = min(longest, max_states) * costs.state_bytes if longest > 1 else 0
    size = costs.log.size(steps, stored, distance)
    return KeepPlan(
        keep=label,
        states=stored,
        log_bytes=size,
        write_rate=None if costs.step_seconds is None else size / max(1e-9, steps * costs.step_seconds),
        replay_steps=walked,
        rebuilt=again,
        replay_seconds=_replay_seconds(costs, walked, again),
        replay_bytes=None if costs.walk_bytes is None or not walked else costs.walk_bytes + in_memory,
        remark=remark if costs.repeatable or not again else "a step taken again does not give the same bits here",
    )


def _replay_seconds(costs: RunCosts, walked: int, again: int) -> float | None:
    if costs.back_seconds is None or costs.forward_seconds is None or not walked:
        return None
    return (costs.once_seconds or 0.0) + walked * costs.back_seconds + again * costs.forward_seconds


def _stored_by(keep: Keep, steps: int, per_epoch: int | None) -> Iterator[int]:
    """Yield the states that a policy of somebody's own stores."""
    length = per_epoch or steps
    epochs = -(-steps // length)
    for index in range(steps):
        if keep.stores(index, index // length, epochs):
            yield index


def _within(budget: Budget, costs: RunCosts, steps: int) -> Keep:
    """Return the policy that a budget begins with."""
    prospect = Prospect(
        state_bytes=costs.state_bytes,
        record_bytes=round(costs.log.step),
        codec=costs.log.codec,
        steps=steps,
        epochs=None if costs.steps_per_epoch is None else -(-steps // costs.steps_per_epoch),
        repeatable=costs.repeatable,
        averaged=costs.log.averages > 0,
    )
    keep = parse_keep(make_plan(budget, prospect).keep)
    if isinstance(keep, Budget):
        raise ConfigurationError(f"{budget} was planned as {keep}; expected a policy of states")
    return keep


def _text(plan: RunPlan) -> Iterator[str]:
    costs = plan.costs
    training = plan.training_seconds
    length = "" if training is None else f", training about {readable_seconds(training)}"
    each = "" if costs.step_seconds is None else f" ({1e3 * costs.step_seconds:.3g} ms a step)"
    yield (
        f"{costs.parameters:,} trained numbers, a state of {readable_bytes(costs.state_bytes)}; "
        f"{plan.steps:,} steps{length}{each}"
    )
    yield ""
    head = ("keep", "states", "log", "write/s", "replay", "memory", "")
    rows = [
        (
            p.keep,
            f"{p.states:,}",
            readable_bytes(p.log_bytes),
            _or_unknown(p.write_rate, readable_bytes),
            "-" if not p.replay_steps else _or_unknown(p.replay_seconds, readable_seconds),
            "-" if not p.replay_steps else _or_unknown(p.replay_bytes, readable_bytes),
            p.remark,
        )
        for p in plan.policies
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        yield "  ".join(cells).rstrip()
    yield ""
    yield from costs.measured_on


def _or_unknown(value: float | None, show: Callable[[float], str]) -> str:
    return "?" if value is None else show(value)
