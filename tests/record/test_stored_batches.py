"""Runs on data that cannot be made again: the batches are in the log, and scores are those of the training that was."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, Scores, TrajectoryRecorder
from lightning_sgdinf.baselines import LossBaseline
from lightning_sgdinf.errors import ConfigurationError, DataMismatchError, UnsupportedRunError
from lightning_sgdinf.log import Draw
from lightning_sgdinf.log.batch_bytes import decode_batch
from lightning_sgdinf.record.stored_batches import BatchStore
from lightning_sgdinf.testing import Losses, UnrolledRun, UnrolledStep, relative_error, unrolled_scores

N, BATCH, EPOCHS, RATE = 10, 4, 2, 0.3


def table() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(N, 3, generator=generator, dtype=torch.float64), torch.arange(N) % 3


class OwnNoise(Dataset):
    """A generator of its own, which goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.x, self.y = table()
        self.noise = np.random.default_rng(4)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i] + torch.from_numpy(self.noise.normal(size=3)), "y": self.y[i], "key": torch.tensor(i)}


class Stream(IterableDataset):
    """Examples in another order each epoch, under keys from 100 on; the same example twice now and then."""

    def __init__(self) -> None:
        self.own = OwnNoise()
        self.order = random.Random(3)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for i in self.order.choices(range(N), k=N):
            yield {**self.own[i], "key": torch.tensor(100 + 7 * i)}


class Batches:
    """No DataLoader at all."""

    def __init__(self) -> None:
        self.stream = Stream()

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(self.stream, BATCH))


class Net(pl.LightningModule):
    """Notes its batches, apart from the recorder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if isinstance(self.trainer, pl.Trainer):
            self.seen.append({k: v.clone() for k, v in batch.items()})
        batch["x"].mul_(0.5)  # a step may do as it likes with its batch
        return F.cross_entropy(self.net(batch["x"]), batch["y"])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


def fit(net: Net, loader: Any, *callbacks: pl.Callback) -> Net:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=EPOCHS,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
        trainer.fit(net, loader)
    return net


def validation() -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, torch.arange(6) % 3), 3)


def scores(path: Path, train: Any = None, **options: Any) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", progress=False, **options)
    return runner.run(Net(), train, validation(), log=path)


def truth(path: Path, seen: list[dict[str, Tensor]], positions: list[Tensor], count: int) -> Tensor:
    """Autograd through the training on the batches that the module saw."""
    net = Net()
    ((x, y),) = [(torch.cat([b[0] for b in validation()]), torch.cat([b[1] for b in validation()]))]

    def output(params: Any, rows: Tensor) -> Tensor:
        return functional_call(net.net, {n.removeprefix("net."): p for n, p in params.items()}, (rows,))

    def forward(params: Any, buffers: Any, ids: Tensor, step: int, micro: int) -> Losses:
        return Losses(F.cross_entropy(output(params, 0.5 * seen[step]["x"]), seen[step]["y"], reduction="none"))

    with RunLog.open(path) as log:
        params = log.state(0).params
    run = UnrolledRun(
        params=params,
        steps=[UnrolledStep(batches=[p], groups=[(list(params), {"lr": RATE})]) for p in positions],
        forward=forward,
        query=lambda params, buffers: F.cross_entropy(output(params, x), y)[None],
    )
    return unrolled_scores(run, count)


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "map": (lambda: DataLoader(OwnNoise(), BATCH, shuffle=True), {}),
    "map, workers": (lambda: DataLoader(OwnNoise(), BATCH, shuffle=True, num_workers=1), {}),
    "map, keys": (lambda: DataLoader(OwnNoise(), BATCH, shuffle=True), {"example_key": lambda b: b["key"]}),
    "stream": (lambda: DataLoader(Stream(), BATCH), {}),
    "stream, keys": (lambda: DataLoader(Stream(), BATCH), {"example_key": lambda b: b["key"]}),
    "no loader, keys": (Batches, {"example_key": lambda b: b["key"].tolist()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_batches_that_were(tmp_path: Path, kind: str) -> None:
    make, options = KINDS[kind]
    plain = fit(Net(), make())
    path = tmp_path / "run.tlog"
    recorded = fit(Net(), make(), TrajectoryRecorder(path, keep="every(2)", store_batches=True, **options))
    assert all(torch.equal(v, recorded.state_dict()[n]) for n, v in plain.state_dict().items())
    keys = torch.cat([b["key"] for b in recorded.seen])
    sizes = [len(b["y"]) for b in recorded.seen]
    if kind == "stream":
        ids = torch.arange(len(keys))
    elif kind.startswith("map") and not options:
        ids = keys
    else:
        ids = torch.searchsorted(torch.unique(keys), keys)
    positions = list(ids.split(sizes))
    count = int(ids.max()) + 1 if kind == "stream" or options else N
    scored = scores(path, certificate="full")
    assert scored.values.shape == (count, 1)
    assert relative_error(scored.values, truth(path, recorded.seen, positions, count)) < 1e-10
    assert scored.certificate is not None
    assert any("states were rebuilt" in note for note in scored.certificate.notes)
    if options:
        assert scored.labels == tuple(str(k) for k in torch.unique(keys).tolist())
    with RunLog.open(path) as log:
        assert log.verify().ok
        (draw,) = log.step(3).micro_batches[0].draws
        assert draw.batch is not None
        assert torch.equal(decode_batch(draw.batch())["x"], recorded.seen[3]["x"])


def test_the_training_loader_names_the_examples_where_it_can(tmp_path: Path) -> None:
    path = tmp_path / "run.tlog"
    fit(Net(), DataLoader(OwnNoise(), BATCH), TrajectoryRecorder(path, store_batches=True))
    data = OwnNoise()
    data.targets = data.y  # type: ignore[attr-defined]
    assert scores(path, DataLoader(data), certificate="off").labels == tuple(str(int(i)) for i in data.y)
    assert scores(path, DataLoader(Stream()), certificate="off").labels is None


def test_without_it_such_runs_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for name, loader in (("a", DataLoader(Stream(), BATCH)), ("b", Batches())):
        with pytest.raises(UnsupportedRunError, match=r"TrajectoryRecorder\(store_batches=True\)"):
            fit(Net(), loader, TrajectoryRecorder(tmp_path / name))
    path = tmp_path / "c"
    fit(Net(), DataLoader(OwnNoise(), BATCH), TrajectoryRecorder(path))
    with pytest.raises(DataMismatchError, match=r"TrajectoryRecorder\(store_batches=True\)"):
        scores(path, DataLoader(OwnNoise(), BATCH))
    with pytest.raises(UnsupportedRunError, match=r"store_batches=True"):
        scores(path, DataLoader(Stream(), BATCH))


def test_what_makes_batches_of_its_own_choice_needs_the_data(tmp_path: Path) -> None:
    path = tmp_path / "run.tlog"
    fit(Net(), DataLoader(Stream(), BATCH), TrajectoryRecorder(path, store_batches=True))
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with pytest.raises(UnsupportedRunError, match="batches of its own choice"):
        runner.run(Net(), None, validation(), log=path, estimator=LossBaseline())


def test_a_key_without_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pass store_batches=True"):
        TrajectoryRecorder(tmp_path, example_key=lambda batch: batch[0])


def store(key: Any = None) -> tuple[BatchStore, list[str]]:
    problems: list[str] = []
    return BatchStore(key, problems.append), problems


def test_running_numbers_of_several_processes_differ() -> None:
    numbers = []
    for rank in range(3):
        own, _ = store()
        for rows in (2, 1):
            (draw,) = own.take([torch.zeros(rows, 2)], (), rank=rank, world=3)
            numbers += draw.example_ids.tolist()
    assert sorted(numbers) == list(range(9))


@pytest.mark.parametrize(
    ("batch", "key", "problem"),
    [
        ([object()], lambda b: [1], r"batch\[0\] is a builtins.object"),
        ([1.5], None, "no tensor whose first dimension"),
        ([torch.zeros(2)], lambda b: [0.5, 1], r"example_key returned \[0.5, 1\]"),
        ([torch.zeros(2)], lambda b: [-1, 1], "integers from 0 on"),
    ],
)
def test_batches_that_cannot_be_taken_down(batch: Any, key: Any, problem: str) -> None:
    own, problems = store(key)
    own.take(batch, (), rank=0, world=1)
    assert len(problems) == 1
    assert re.search(problem, problems[0])


def test_batches_of_several_loaders_are_not_taken_down() -> None:
    own, problems = store()
    draws = (Draw(example_ids=np.arange(2)), Draw(loader=1, example_ids=np.arange(2)))
    assert own.take([torch.zeros(2)], draws, rank=0, world=1) == draws
    assert "2 loaders at once" in problems[0]
