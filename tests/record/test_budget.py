"""A log within a number of bytes: plans, what becomes of them, and a real run."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, TrajectoryRecorder
from lightning_sgdinf.checkpointing import steps_again
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import Draw, MicroBatch
from lightning_sgdinf.log.store import LogSizes
from lightning_sgdinf.record.budget import Budget, Prospect, make_plan, parse_budget
from lightning_sgdinf.record.budgeted_keep import BudgetedKeep, record_bytes, remaining_steps

KB, MB, GB = 10**3, 10**6, 10**9
ORDER = {"none": 0, "delta": 1, "delta2": 2}  # anchors at either end of a segment


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("budget:2GB", 2 * GB),
        ("budget: 500 MB", 500 * MB),
        ("budget:1.5kB", 1500),
        ("budget:3MiB", 3 << 20),
        ("budget:77B", 77),
    ],
)
def test_budgets_as_texts(text: str, size: int) -> None:
    budget = parse_budget(text)
    assert budget == Budget(size)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["budget:", "budget:2", "budget:-2GB", "budget:2gb", "2GB", "every(3)"])
def test_what_is_no_budget(text: str) -> None:
    assert parse_budget(text) is None


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        Budget(0)


def prospect(**changes: Any) -> Prospect:
    """MnistNet for an epoch or two: 1.2 MB, 1,000 steps."""
    return Prospect(**{"state_bytes": 1_232_000, "record_bytes": 1_000, "steps": 1_000, "epochs": 2, **changes})


@pytest.mark.parametrize(
    ("size", "changes", "keep"),
    [
        (2 * GB, {}, "every_step"),
        (2 * GB, {"steps": 10_000}, "every(6)"),
        (100 * MB, {}, "every(12)"),
        (8 * MB, {}, "every(256)"),
        (5 * MB, {}, "final"),
        (2 * GB, {"repeatable": False}, "every_step"),
        (2 * GB, {"steps": 10_000, "repeatable": False, "epochs": 10}, "last_epochs(1)"),
        (5 * GB, {"steps": 10_000, "repeatable": False, "epochs": 10}, "last_epochs(3)"),
        (5 * GB, {"steps": 10_000, "repeatable": False, "epochs": None}, "final"),
        (100 * MB, {"steps": 10_000, "repeatable": False, "epochs": 10}, "final"),
        (2 * GB, {"steps": None}, "every_step"),
        (2 * GB, {"steps": None, "repeatable": False}, "final"),
    ],
)
def test_plans(size: int, changes: dict[str, Any], keep: str) -> None:
    plan = make_plan(Budget(size), prospect(**changes))
    assert plan.keep == keep
    if plan.log_bytes is not None:
        assert plan.log_bytes <= size


def test_a_plan_says_what_replay_will_cost() -> None:
    plan = make_plan(Budget(100 * MB), prospect())
    assert plan.forward_passes == steps_again(12, 10**6) / 12 == 11 / 12
    assert plan.memory_bytes == 12 * 1_232_000
    sentence = plan.sentence(Budget(100 * MB))
    assert sentence.startswith("'budget:100MB' for 1,000 steps: keep='every(12)', about 9")
    assert "0.9 more trainings, forwards only, and keeps 14.8 MB of rebuilt states in memory" in sentence
    long = make_plan(
        Budget(20 * GB), prospect(state_bytes=GB, steps=100_000)
    )  # room for three states, one of them held
    assert long.every > 4_000
    assert long.forward_passes == (long.every - 1) / 2
    assert "no state again" in make_plan(Budget(9 * GB), prospect()).sentence(Budget(9 * GB))
    assert "trained model alone" in make_plan(Budget(MB), prospect()).sentence(Budget(MB))


@dataclass
class Log:
    """A log that grows as the real one does: rows, anchors at either end of a segment, records, and an end.

    Attributes:
        ratio: How much smaller a state gets, by the distance from the stored one before.
        stays: How many steps a segment holds.
    """

    state_bytes: int
    record_bytes: int
    order: int
    ratio: Any
    stays: int = 4096
    before: int = 0
    total: int = 0
    states: int = 0
    rows: int = 0
    last: int = -1
    kept: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = self.before

    def put(self, index: int, store: bool) -> None:
        if index % self.stays == 0:
            self.seal()
        self.total += self.record_bytes
        if store:
            plain = self.rows < self.order
            size = self.state_bytes if plain else math.ceil(self.state_bytes / self.ratio(index - self.last))
            self.rows += 1
            self.total += size
            self.states += size
            self.last = index
            self.kept.append(index)

    def measure(self) -> LogSizes:
        return LogSizes(total=self.total, states=self.states)

    def seal(self) -> None:
        self.total += min(self.rows, self.order) * self.state_bytes
        self.rows = 0

    def ended(self) -> int:
        """Its size if the run ended now."""
        return self.total + (min(self.rows, self.order) + 1) * self.state_bytes


def run(log: Log, keep: BudgetedKeep, steps: int) -> None:
    for index in range(steps):
        log.put(index, keep.stores(index, 0, 1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    state_bytes=st.integers(1, 10**7),
    record_bytes=st.integers(0, 10**4),
    codec=st.sampled_from(sorted(ORDER)),
    ratio=st.floats(0.98, 6),
    stays=st.sampled_from([1, 7, 100, 4096]),
    planned=st.none() | st.integers(1, 400),
    steps=st.integers(1, 1200),
    fits=st.floats(0.01, 3),
)
def test_the_log_never_outgrows_its_budget(
    state_bytes: int,
    record_bytes: int,
    codec: str,
    ratio: float,
    stays: int,
    planned: int | None,
    steps: int,
    fits: float,
) -> None:
    """For any sizes, compression, and length of run, planned or not."""
    budget = Budget(int(fits * steps * state_bytes) + 400 * KB + 2 * steps * record_bytes)
    expected = Prospect(state_bytes=state_bytes, record_bytes=record_bytes, codec=codec, steps=planned)
    log = Log(state_bytes, record_bytes, ORDER[codec], lambda distance: ratio if codec != "none" else 1.0, stays)
    at = [0]

    def remaining(seconds: float | None) -> int | None:
        return None if planned is None else max(0, planned - at[0])

    keep = BudgetedKeep(budget, expected, measure=log.measure, remaining=remaining)
    for index in range(steps):
        at[0] = index
        store = keep.stores(index, 0, 1)
        log.put(index, store)
        assert not store or log.ended() <= budget.size_bytes
    if planned is not None and steps <= planned:
        assert log.ended() <= max(budget.size_bytes, steps * record_bytes + state_bytes)
    if log.kept:
        assert log.kept[0] == 0, "without the first state nothing can be rebuilt"


def kept(budget: int, steps: int, *, planned: int | None, ratio: float = 1.6, **changes: Any) -> tuple[Log, list[str]]:
    said: list[str] = []
    expected = prospect(steps=planned, **changes)
    log = Log(expected.state_bytes, expected.record_bytes, 1, lambda distance: ratio)
    at = [0]
    clock = iter(range(10**9))

    def remaining(seconds: float | None) -> int | None:
        assert seconds is None or seconds > 0
        return None if planned is None else max(0, planned - at[0])

    keep = BudgetedKeep(
        Budget(budget),
        expected,
        measure=log.measure,
        remaining=remaining,
        inform=said.append,
        clock=lambda: float(next(clock)),
    )
    for index in range(steps):
        at[0] = index
        log.put(index, keep.stores(index, index * (expected.epochs or 1) // max(1, planned or 1), expected.epochs or 1))
    return log, said


def test_a_run_that_fits_is_stored_whole() -> None:
    log, _ = kept(2 * GB, 1000, planned=1000)
    assert log.kept == list(range(1000))


def gaps_of(log: Log) -> list[int]:
    return [b - a for a, b in zip(log.kept, log.kept[1:], strict=False)]


def test_states_that_compress_better_than_planned_are_stored_more_often() -> None:
    log, said = kept(100 * MB, 1000, planned=1000, ratio=4.0)
    assert gaps_of(log)[0] == 12
    assert gaps_of(log)[-1] <= 4
    assert 85 * MB < log.ended() <= 100 * MB
    assert "one state in 4 is stored, 308 kB each" in said[0]


def test_states_that_compress_worse_than_planned_are_stored_less_often() -> None:
    log, said = kept(800 * MB, 1000, planned=1000, ratio=1.0)
    assert gaps_of(log)[0] == 1
    assert max(gaps_of(log)) == 2
    assert 700 * MB < log.ended() <= 800 * MB
    assert "one state in 2 is stored, 1.23 MB each; rebuilding the others in replay will take about" in said[0]


def test_a_run_that_gets_longer_is_thinned_out() -> None:
    log, said = kept(GB, 16_000, planned=1000, ratio=1.15)
    planned = [gap for gap, index in zip(gaps_of(log), log.kept, strict=False) if index + gap < 1000]
    rest = [gap for gap, index in zip(gaps_of(log), log.kept, strict=False) if index >= 1000]
    assert max(planned) <= 2
    assert min(rest) > 10 * max(planned)
    assert [text for text in said if "used up" in text] == said[-1:]
    assert log.kept[-1] > 3500, "nothing was left for the part that was not planned"
    assert log.ended() <= GB


def test_a_run_of_unknown_length_doubles_its_gaps() -> None:
    log, said = kept(100 * MB, 8_000, planned=None)
    assert gaps_of(log)[0] == 1
    assert gaps_of(log) == sorted(gaps_of(log))
    assert log.kept[-1] > 1000
    assert log.ended() <= 100 * MB
    assert len(said) < 12, "not every change is worth a message"


def test_of_the_last_epochs_every_state_is_stored() -> None:
    log, _ = kept(900 * MB, 1000, planned=1000, repeatable=False, ratio=1.0)
    assert log.kept == list(range(500, 1000))
    assert log.ended() <= 900 * MB


def test_what_was_there_before_counts() -> None:
    before = Log(1000, 10, 1, lambda distance: 1.0, before=900 * KB)
    keep = BudgetedKeep(Budget(MB), Prospect(state_bytes=1000, record_bytes=10, steps=500), measure=before.measure)
    run(before, keep, 500)
    assert before.kept == []


# Real runs ---------------------------------------------------------------------------------------------------------


class Wide(pl.LightningModule):
    """500 kB of parameters, as much of momentum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(20, 5000), nn.Tanh(), nn.Linear(5000, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data(count: int, seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 20, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(count) % 3), 4, shuffle=True)


def fit(path: Path, keep: str, **options: Any) -> None:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(path, keep=keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 5, **options},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
        trainer.fit(Wide(), data(40, 1))


def test_a_real_run_stays_within_its_budget_and_scores_are_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, small = tmp_path / "whole", tmp_path / "small"
    fit(whole, "every_step")
    with caplog.at_level("INFO"):
        fit(small, "budget:12MB")
    said = [m for m in caplog.messages if "budget:12MB" in m]
    assert "for 50 steps: keep='every(" in said[0]
    assert "more trainings, forwards only" in said[0]
    assert "state in" in said[1]
    assert len(said) <= 4
    assert sum(p.stat().st_size for p in small.iterdir()) <= 12 * MB
    with RunLog.open(small) as log, RunLog.open(whole) as dense:
        assert log.header.keep == "budget:12MB"
        plan = log.header.extra["budget"]
        assert plan["keep"] == f"every({plan['every']})"
        assert plan["log_bytes"] <= 12 * MB
        assert 3 <= len(log.state_indices) < len(dense.state_indices) == 51
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    small_values, expected = (runner.run(Wide(), data(40, 1), data(6, 2), log=path).values for path in (small, whole))
    assert torch.equal(small_values, expected)


def test_a_run_without_end_is_recorded_within_its_budget(tmp_path: Path) -> None:
    fit(tmp_path / "run", "budget:9MB", max_epochs=-1, max_time={"seconds": 0.5})
    with RunLog.open(tmp_path / "run") as log:
        assert log.header.extra["budget"]["steps"] is None
        assert log.size_bytes <= 9 * MB
        assert log.finished


def test_how_many_steps_are_to_come() -> None:
    def trainer(total: Any, left: float | None = None) -> Any:
        timer = SimpleNamespace(time_remaining=lambda: left)
        return SimpleNamespace(
            estimated_stepping_batches=total, global_step=10, callbacks=[timer, SimpleNamespace()], max_epochs=1
        )

    assert remaining_steps(trainer(100), None) == 90
    assert remaining_steps(trainer(5), None) == 0
    assert remaining_steps(trainer(float("inf")), None) is None
    assert remaining_steps(trainer(-1), 0.5) is None
    assert remaining_steps(trainer(-1, left=7.0), 0.5) == 14
    assert remaining_steps(trainer(100, left=7.0), 0.5) == 14
    assert remaining_steps(trainer(100, left=700.0), 0.5) == 90
    assert remaining_steps(trainer(100, left=7.0), None) == 90

    class Open:
        global_step, callbacks = 3, ()

        @property
        def estimated_stepping_batches(self) -> int:
            raise ValueError("the loader has no length")

    assert remaining_steps(Open(), None) is None


def test_a_record_takes_what_has_moved() -> None:
    still = {"torch": b"t" * 5000, "numpy": b"n" * 2500}
    moved = {**still, "torch": b"u" * 5000}
    draw = Draw(example_ids=np.arange(64), random=still, batch=lambda: bytes(1000))
    quiet = MicroBatch(batch_idx=0, draws=(draw,), transferred_with=still, stepped_with=still)
    assert 1000 + 64 * 8 < record_bytes([quiet], still) < 1000 + 64 * 8 + 1000
    assert record_bytes([quiet], moved) == record_bytes([quiet], still) + 5000
