"""Counterfactual truth in several processes: the same numbers, and a measurement that was stopped goes on."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.truth import Truth, Workers, workers
from lightning_sgdinf.truth.ledger import Ledger

EXAMPLES = 24


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.5)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES + 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (EXAMPLES + 6,), generator=generator)
    train, validation = TensorDataset(x[:EXAMPLES], y[:EXAMPLES]), TensorDataset(x[EXAMPLES:], y[EXAMPLES:])
    return DataLoader(train, 6), DataLoader(validation, 6)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workers") / "run.tlog"
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(path)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(Net(), *loaders())
    return path


def measured(log: Path, *, memory: int = 1 << 30, **more: Any) -> Truth:
    runner = InfluenceRunner(accelerator="cpu", progress=False, memory_bytes=memory, certificate="off")
    return runner.counterfactuals(Net(), *loaders(), log=log, **more)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let work be done here, after all of it has been to bytes and back; returns the sizes of the waves."""
    waves: list[int] = []

    def there(self: Workers, work: Callable[..., Any], key: Any, opening: Any, parts: Sequence[Any]) -> list[Any]:
        waves.append(len(parts))
        calls = [pickle.loads(pickle.dumps((work, key, opening, part))) for part in parts]
        return [pickle.loads(pickle.dumps(workers._work_there(*call))) for call in calls]

    monkeypatch.setattr(Workers, "map", there)
    monkeypatch.setattr(Workers, "apart", property(lambda self: self.jobs > 1))
    threads = torch.get_num_threads()
    yield waves
    torch.set_num_threads(threads)
    if workers._held is not None:
        workers._held[1].close()
        workers._held = None


def test_what_comes_back_is_what_is_measured_here(log: Path, sent: list[int]) -> None:
    pytest.importorskip("joblib")
    one, several = measured(log), measured(log, jobs=3)
    assert sent == [3]
    assert (one.values - several.values).abs().max() < 1e-12
    assert several.leave_out == one.leave_out
    chosen = [[0, 5], [3], [7, 8], [1], [2]]
    assert (measured(log, jobs=2, leave_out=chosen).values - measured(log, leave_out=chosen).values).abs().max() < 1e-12
    with pytest.raises(ConfigurationError, match="jobs: expected a number of processes of at least 1, got 0"):
        measured(log, jobs=0)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the sets that are added from now on to a file."""
    numbers: list[int] = []
    add = Ledger.add

    def adding(self: Ledger, chosen: Sequence[int], values: Tensor, steps: int) -> None:
        numbers.extend(chosen if self._path is not None else ())
        add(self, chosen, values, steps)

    monkeypatch.setattr(Ledger, "add", adding)
    return numbers


def test_waves_that_were_measured_are_kept(
    log: Path, sent: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for a few runs at once there are several waves; the second is lost with its machines."""
    pytest.importorskip("joblib")
    whole, there = measured(log), Workers.map

    def lost(self: Workers, *arguments: Any) -> list[Any]:
        if len(sent) == 1:
            raise ConnectionError("a node is gone")
        return there(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "map", lost)
        with pytest.raises(ConnectionError):
            measured(log, memory=40_000, jobs=2, resume=tmp_path / "part.h5")
    added = noted(monkeypatch)
    truth = measured(log, memory=40_000, jobs=2, resume=tmp_path / "part.h5")
    assert 0 < len(added) < EXAMPLES
    assert (truth.values - whole.values).abs().max() < 1e-12


@contextmanager
def two_nodes(ray: Any) -> Iterator[tuple[Any, Any]]:
    """A Ray cluster of two nodes of one processor each on this machine; yields it and the second node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}})
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_ray_cluster_that_loses_a_node(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node is killed before the second wave: the call ends or goes on without it, the next does what is left."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray joblib")
    joblib = pytest.importorskip("joblib")
    from ray.util.joblib import register_ray

    register_ray()
    whole, path, waves = measured(log), tmp_path / "part.h5", []
    there = Workers.map
    with two_nodes(ray) as (cluster, second), joblib.parallel_config(backend="ray", n_jobs=2):

        def killing(self: Workers, *arguments: Any) -> list[Any]:
            waves.append(len(arguments[-1]))
            if len(waves) == 2:
                cluster.remove_node(second, allow_graceful=False)
            return there(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Workers, "map", killing)
            # Ray's error, or joblib's when it makes a new pool and misses a processor; or Ray does it elsewhere.
            with suppress(ray.exceptions.RayError, ValueError):
                measured(log, memory=40_000, jobs=2, resume=path)
    left = noted(monkeypatch)
    truth = measured(log, memory=40_000, resume=path)  # here
    assert waves == [2, 2]
    assert len(left) < EXAMPLES, "what the first wave had measured was lost"
    assert (truth.values - whole.values).abs().max() < 1e-12
