"""Runs of two processes: one log of all of them, and scores that are those of the training that happened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sgdinf import InfluenceRunner, RunLog
from lightning_sgdinf.errors import LogExistsError, UnsupportedRunError
from lightning_sgdinf.log import Draw, MicroBatch
from lightning_sgdinf.log.step_documents import encode_step
from lightning_sgdinf.query import MeanLoss, PerClassLoss
from lightning_sgdinf.record import compatibility, ranks
from lightning_sgdinf.record.ranks import Collector, Mailbox, Sender, agreed, pack, unpack
from lightning_sgdinf.state import Layout
from lightning_sgdinf.testing import Losses, UnrolledRun, UnrolledStep, relative_error, unrolled_scores
from lightning_sgdinf.testing.oracles import unrolled_training
from tests.log.cases import described, make_step
from tests.record import ddp_runs
from tests.record.ddp_runs import MOMENTUM, RATE, N, Plain, Rich

PROCESSES = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Where the logs are, and what each process noted."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(repository),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, ddp_runs.__file__, str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder, [torch.load(folder / f"rank-{r}.pt", weights_only=False) for r in range(PROCESSES)]


@pytest.mark.parametrize("name", ["plain", "rich"])
def test_training_is_bit_for_bit_what_it_is_without_the_recorder(runs: Any, name: str) -> None:
    for outcomes in runs[1]:
        assert outcomes[name]["unchanged"]


@pytest.mark.parametrize(("name", "together"), [("plain", 1), ("rich", 2)])
def test_the_log_has_what_every_process_saw(runs: Any, name: str, together: int) -> None:
    folder, outcomes = runs
    with RunLog.open(folder / name) as log:
        assert log.finished
        assert log.verify().ok
        for rank in range(PROCESSES):
            recorded = [
                micro.example_ids.tolist()
                for step in log.steps(0, len(log))
                for micro in step.micro_batches
                if micro.rank == rank
            ]
            assert recorded == outcomes[rank][name]["seen"]
        assert outcomes[0][name]["seen"] != outcomes[1][name]["seen"], "the test is degenerate"
        for step in log.steps(0, len(log)):
            assert step.accumulation == PROCESSES * together
            assert [m.rank for m in step.micro_batches] == sorted((m.rank for m in step.micro_batches), reverse=True)
        last = log.state(len(log))
        for tensor, value in {**last.params, **last.buffers}.items():
            assert torch.equal(outcomes[0][name]["weights"][tensor], value)


def score(folder: Path, net: Plain, name: str, query: Any = None, **options: Any) -> Any:
    runner = InfluenceRunner(accelerator="cpu", progress=False, **options)
    data = ddp_runs.Augmented() if isinstance(net, Rich) else None
    return runner.run(
        net, ddp_runs.train_loader(data), ddp_runs.validation_loader(), log=folder / name, query=query or MeanLoss()
    )


def unrolled(folder: Path) -> UnrolledRun:
    """The run as single-process training on the mean of the processes' batches, written out."""
    x, y, _ = ddp_runs.tensors()
    validation = ddp_runs.tensors(8, seed=4)
    net = Plain()

    def forward(params: Any, buffers: Any, ids: Tensor, step: int, micro: int) -> Losses:
        output = functional_call(net.net, {n.removeprefix("net."): p for n, p in params.items()}, (x[ids],))
        return Losses(F.cross_entropy(output, y[ids], reduction="none"))

    def query(params: Any, buffers: Any) -> Tensor:
        output = functional_call(net.net, {n.removeprefix("net."): p for n, p in params.items()}, (validation[0],))
        return F.cross_entropy(output, validation[1])[None]

    with RunLog.open(folder / "plain") as log:
        names = list(log.state(0).params)
        return UnrolledRun(
            params=log.state(0).params,
            steps=[
                UnrolledStep(
                    batches=[torch.tensor(m.example_ids) for m in step.micro_batches],
                    groups=[(names, {"lr": RATE, "momentum": MOMENTUM})],
                    accumulation=PROCESSES,
                )
                for step in log.steps(0, len(log))
            ],
            forward=forward,
            query=query,
        )


def test_scores_are_those_of_one_process_that_accumulates(runs: Any) -> None:
    folder, outcomes = runs
    run = unrolled(folder)
    end, _ = unrolled_training(run, torch.ones(N, dtype=torch.float64))
    for name, value in end.items():
        assert torch.allclose(value, outcomes[0]["plain"]["weights"][name], rtol=0, atol=1e-14)
    scores = score(folder, Plain(), "plain", certificate="full")
    assert relative_error(scores.values, unrolled_scores(run, N)) < 1e-10
    assert scores.certificate.step_replay.bitwise == scores.certificate.step_replay.steps == 6
    assert scores.certificate.gradient_check.relative_error < 1e-5


@pytest.mark.parametrize(("name", "query"), [("rows", MeanLoss()), ("queries", PerClassLoss())])
def test_two_processes_replay_like_one(runs: Any, name: str, query: Any) -> None:
    folder, outcomes = runs
    alone = score(folder, Plain(), "plain", query, certificate="off").values
    for rank in range(PROCESSES):
        assert relative_error(outcomes[rank][name]["scores"], alone) < 1e-12
        assert not outcomes[rank][name]["notes"]


def test_steps_with_batchnorm_dropout_clipping_and_accumulation_are_done_again_bit_for_bit(runs: Any) -> None:
    folder, _ = runs
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    loader = ddp_runs.train_loader(ddp_runs.Augmented())
    with RunLog.open(folder / "rich") as log, runner.replayer(Rich(), loader, log=log) as replayer:
        assert log.state_indices.tolist() == [0, 4, 6]
        end = replayer.run(log.state(0), 0, len(log))
        for kind in ("params", "buffers"):
            recorded = getattr(log.state(len(log)), kind)
            assert all(torch.equal(value, recorded[name]) for name, value in getattr(end, kind).items())


def test_the_walk_rebuilds_states_and_agrees_with_training_again(runs: Any) -> None:
    scores = score(runs[0], Rich(), "rich", certificate="full")
    assert any("4 states were rebuilt" in note for note in scores.certificate.notes)
    assert scores.certificate.gradient_check.relative_error < 1e-5
    assert scores.values.abs().max() > 0


def test_many_runs_at_once_leave_examples_out_of_all_processes(runs: Any) -> None:
    """BatchNorm's statistics are those of process 0 in every one of them."""
    folder, _ = runs
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    loader, validation = ddp_runs.train_loader(ddp_runs.Augmented()), ddp_runs.validation_loader()
    together = runner.counterfactuals(Rich(), loader, validation, log=folder / "rich", leave_out=[[0], [5]]).values

    def loss_without(example: int | None) -> Tensor:
        weights = torch.ones(N, dtype=torch.float64)
        if example is not None:
            weights[example] = 0
        net = Rich()
        with RunLog.open(folder / "rich") as log, runner.replayer(net, loader, log=log) as replayer:
            end = replayer.run(log.state(0), 0, len(log), weights=weights)
        net.load_state_dict({**end.params, **end.buffers})
        net.eval()
        with torch.no_grad():
            return sum(F.cross_entropy(net.net(x), y, reduction="sum") for x, y in validation) / 8

    alone = torch.stack([loss_without(0), loss_without(5)]) - loss_without(None)
    assert relative_error(together[:, 0], alone) < 1e-9


def test_a_process_that_dies_leaves_a_readable_log(runs: Any) -> None:
    folder, _ = runs
    assert (folder / "error.txt").exists(), "the test is degenerate: process 0 did not notice"
    with RunLog.open(folder / "dying") as log:
        assert len(log) == ddp_runs.DIES_IN_STEP
        assert "exception" in log.end_reason
        assert log.verify().ok


# Without processes -------------------------------------------------------------------------------------------------


class Post:
    """A store of one process; nothing waits."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        self.kept[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        if key not in self.kept:
            raise RuntimeError("wait timeout")
        return self.kept[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)

    def wait(self, keys: list[str], timeout: Any) -> None:
        if not self.check(keys):
            raise RuntimeError("wait timeout")

    def delete_key(self, key: str) -> bool:
        return self.kept.pop(key, None) is not None


class Journal:
    """A writer that keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.take_buffers = self.sizes = self.flush = self.finish = self.abandon = None

    def put(self, step: Any, layout: Layout, flat: Any, *, store: bool = True) -> None:
        self.steps.append((step, store))


def test_a_step_survives_the_mail() -> None:
    for t in range(6):
        assert described(unpack(t, pack(encode_step(make_step(t))))) == described(make_step(t))


def test_stored_batches_survive_the_mail() -> None:
    draw = Draw(example_ids=np.arange(2), batch=lambda: b"content")
    step = make_step(1)
    step = type(step)(
        **{n: getattr(step, n) for n in step.__slots__} | {"micro_batches": (MicroBatch(batch_idx=0, draws=(draw,)),)}
    )
    mailed = unpack(1, pack(encode_step(step)))
    assert mailed.micro_batches[0].draws[0].batch() == b"content"


def test_random_states_of_a_device_go_to_the_device_of_process_0() -> None:
    post, journal = Post(), Journal()
    micro = MicroBatch(batch_idx=0, draws=(), stepped_with={"torch": b"t", "cuda:0": b"other", "cuda:1": b"own"})
    empty = Layout(())

    def step(own: MicroBatch) -> Any:
        made = make_step(0)
        return type(made)(**{n: getattr(made, n) for n in made.__slots__} | {"micro_batches": (own,)})

    Sender(Mailbox(1, 2, post), "cuda:1").put(step(micro), empty, {})
    Collector(journal, Mailbox(0, 2, post), "cuda:0").put(step(micro), empty, {}, store=False)
    ((joined, stored),) = journal.steps
    assert not stored
    assert [m.rank for m in joined.micro_batches] == [1, 0]
    assert joined.micro_batches[0].stepped_with == {"torch": b"t", "cuda:0": b"own"}
    assert joined.micro_batches[1].stepped_with == micro.stepped_with
    assert joined.accumulation == 2 * make_step(0).accumulation
    assert post.kept.keys() == {"0/process", "1/process"}


def test_a_process_that_does_not_tell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(0))
    with pytest.raises(UnsupportedRunError, match=r"process 1 has not told what it fed into step 7 \(no word for"):
        Mailbox(0, 2, Post()).fetch(1, 7)


def test_a_process_that_stops_recording_is_not_waited_for() -> None:
    post = Post()
    one, other = Mailbox(0, 2, post), Mailbox(1, 2, post)
    sender = Sender(other, "cpu")
    sender.put(make_step(0), Layout(()), {})
    sender.abandon("recording stopped: a sampler")
    collector = Collector(journal := Journal(), one, "cpu")
    collector.put(make_step(0), Layout(()), {})  # what it told before counts
    assert len(journal.steps) == 1
    with pytest.raises(UnsupportedRunError, match=r"fed into step 1 \(recording stopped: a sampler\)"):
        collector.put(make_step(1), Layout(()), {})


def test_a_process_that_is_gone_is_not_waited_for() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    post = Post()
    Mailbox(1, 2, post)
    post.set("1/process", f"{gone.pid}@{socket.gethostname()}")
    with pytest.raises(UnsupportedRunError, match=rf"process {gone.pid} is gone"):
        Mailbox(0, 2, post).fetch(1, 7)


def test_processes_hear_that_process_0_records_no_more() -> None:
    post, ended = Post(), []
    journal = Journal()
    journal.abandon = ended.append
    collector = Collector(journal, Mailbox(0, 2, post), "cpu")
    sender = Sender(Mailbox(1, 2, post), "cpu")
    collector.abandon("the disk is full")
    assert ended == ["the disk is full"]
    sender.put(make_step(1), Layout(()), {})  # it looks now and then
    with pytest.raises(UnsupportedRunError, match=r"has stopped recording \(the disk is full\)"):
        sender.put(make_step(64), Layout(()), {})


def test_what_process_0_refuses_all_refuse() -> None:
    sent: list[Any] = []

    def refuse() -> Path:
        raise LogExistsError("taken")

    def trainer(rank: int, broadcast: Any) -> Any:
        return SimpleNamespace(world_size=2, global_rank=rank, strategy=SimpleNamespace(broadcast=broadcast))

    with pytest.raises(LogExistsError):
        agreed(trainer(0, lambda value: sent.append(value) or value), refuse)
    with pytest.raises(LogExistsError):
        agreed(trainer(1, lambda value: sent[0]), lambda: pytest.fail("only process 0 chooses"))


class DDPStrategy:
    _ddp_comm_hook = None
    _model_averaging_period = None

    def __init__(self, **options: Any) -> None:
        self._ddp_kwargs = options


class FSDPStrategy:
    pass


class HorovodStrategy:
    pass


def trainer_of(strategy: Any, world_size: int = 2, accumulate: int = 1) -> Any:
    return SimpleNamespace(strategy=strategy, world_size=world_size, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize(
    ("strategy", "world_size", "reason"),
    [
        (FSDPStrategy(), 2, "FSDPStrategy shares parameters and optimizer state out"),
        (FSDPStrategy(), 1, "FSDPStrategy shares parameters"),
        (HorovodStrategy(), 2, "2 processes under HorovodStrategy"),
        (HorovodStrategy(), 1, ""),
        (DDPStrategy(), 2, ""),
    ],
)
def test_which_strategies_are_recorded(strategy: Any, world_size: int, reason: str) -> None:
    reason_given = compatibility.impossible_to_record(trainer_of(strategy, world_size))
    assert reason in reason_given
    assert bool(reason_given) == bool(reason)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("centre", torch.zeros(2))


def with_hook() -> DDPStrategy:
    strategy = DDPStrategy()
    strategy._ddp_comm_hook = lambda state, bucket: None
    return strategy


def with_periods() -> DDPStrategy:
    strategy = DDPStrategy()
    strategy._model_averaging_period = 4
    return strategy


@pytest.mark.parametrize(
    ("module", "strategy", "accumulate", "reason"),
    [
        (nn.Sequential(nn.SyncBatchNorm(2)), DDPStrategy(), 1, "0 is a SyncBatchNorm"),
        (nn.Linear(2, 2), with_hook(), 1, "ddp_comm_hook changes"),
        (nn.Linear(2, 2), with_periods(), 1, "model_averaging_period"),
        (nn.BatchNorm1d(2), DDPStrategy(broadcast_buffers=False), 1, "broadcast_buffers=False"),
        (nn.Linear(2, 2), DDPStrategy(broadcast_buffers=False), 1, ""),
        (Counting(), DDPStrategy(), 2, "the buffer centre may change"),
        (Counting(), DDPStrategy(), 1, ""),
        (nn.Sequential(nn.BatchNorm1d(2)), DDPStrategy(), 2, ""),
    ],
)
def test_which_runs_of_several_processes_are_replayed(module: Any, strategy: Any, accumulate: int, reason: str) -> None:
    reasons = compatibility.impossible_to_replay_processes(trainer_of(strategy, 2, accumulate), module)
    assert len(reasons) == bool(reason)
    assert all(reason in text for text in reasons)
    assert not compatibility.impossible_to_replay_processes(trainer_of(strategy, 1, accumulate), module)
