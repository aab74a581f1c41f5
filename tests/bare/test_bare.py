"""Without any extra: record, replay, score, look at the log; all that needs an extra says which one."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_sgdinf
from lightning_sgdinf import InfluenceRunner, RunLog, Scores, TrajectoryRecorder
from lightning_sgdinf.baselines import ConfidentLearning, IsolationForest
from lightning_sgdinf.errors import MissingExtraError
from lightning_sgdinf.zoo import Digits


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1).double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(seed: int) -> DataLoader[Any]:
    return DataLoader(data(seed), batch_size=4)


def derivative(initial: dict[str, Tensor]) -> Tensor:
    """Return minus the gradient of the validation loss by the examples' weights, through the training by hand."""
    (x, y), (validation, target) = data(1).tensors, data(2).tensors
    weights = torch.ones(12, dtype=torch.float64, requires_grad=True)
    w, b = (initial[f"net.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    speed = [torch.zeros_like(w), torch.zeros_like(b)]
    for step in range(6):
        batch = slice(4 * (step % 3), 4 * (step % 3) + 4)
        loss = (weights[batch, None] * (x[batch] @ w.T + b - y[batch]) ** 2).mean()
        gradients = torch.autograd.grad(loss, [w, b], create_graph=True)
        speed = [0.9 * old + new for old, new in zip(speed, gradients, strict=True)]
        w, b = w - 0.1 * speed[0], b - 0.1 * speed[1]
    return -torch.autograd.grad((validation @ w.T + b - target).square().mean(), weights)[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    recorder = TrajectoryRecorder(folder / "run.tlog")
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[recorder], enable_model_summary=False, **quiet)
    trainer.fit(Regression(), loader(1), loader(2))
    return folder / "run.tlog"


@pytest.fixture(scope="module")
def scores(path: Path) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", certificate="fast", progress=False)
    return runner.run(Regression(), loader(1), loader(2), log=path)


def missing_unsaid(module: str) -> bool:
    """Return whether a module cannot be imported and does not say which extra it needs."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return not isinstance(error, MissingExtraError)
    return False


def test_every_module_can_be_imported_or_says_which_extra_it_needs() -> None:
    folder = str(Path(lightning_sgdinf.__file__).parent)  # in a source tree its path is the repository, too
    modules = pkgutil.walk_packages([folder], "lightning_sgdinf.", onerror=lambda name: None)
    assert [module.name for module in modules if missing_unsaid(module.name)] == []


def test_a_run_is_recorded_and_replayed_to_the_bit(path: Path, scores: Scores) -> None:
    with RunLog.open(path) as log:
        assert len(log) == 6
        assert log.verify().ok
    assert scores.certificate is not None
    assert scores.certificate.step_replay is not None
    assert scores.certificate.step_replay.bitwise == 6
    assert scores.values.shape == (12, 1)


def test_scores_are_the_derivative_of_the_run(path: Path, scores: Scores) -> None:
    with RunLog.open(path) as log:
        expected = derivative(dict(log.state(0).params))
    torch.testing.assert_close(scores.values[:, 0], expected, rtol=1e-12, atol=1e-15)


def test_scores_are_kept(scores: Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "scores.h5")
    assert torch.equal(Scores.load(tmp_path / "scores.h5").values, scores.values)


def test_the_command_for_logs_works(path: Path) -> None:
    command = Path(sys.executable).with_name("sgdinf-log")
    done = subprocess.run([command, "verify", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def ranked(baseline: Any, path: Path) -> Scores:
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    return runner.run(Regression(), loader(1), loader(2), log=path, estimator=baseline)


NEEDS: dict[str, tuple[str, str, Callable[[Scores, Path], object]]] = {
    "a table": ("pandas", "cli|report", lambda scores, path: scores.to_frame()),
    "a table in Parquet": ("pyarrow", "cli|report", lambda scores, path: scores.to_parquet("scores.parquet")),
    "the report": ("scipy", "cli|report", lambda scores, path: scores.report("report")),
    "the evaluation": ("scipy", "cli|report", lambda *_: importlib.import_module("lightning_sgdinf.evaluation")),
    "the digits": ("sklearn", "cli", lambda *_: Digits().read()),
    "an outlier baseline": ("sklearn", "cli", lambda scores, path: ranked(IsolationForest(features="input"), path)),
    "confident learning": ("cleanlab", "cleanlab", lambda scores, path: ranked(ConfidentLearning(), path)),
}


@pytest.mark.parametrize(("package", "extra", "use"), NEEDS.values(), ids=NEEDS)
def test_what_needs_an_extra_says_which(
    package: str,
    extra: str,
    use: Callable[[Scores, Path], object],
    scores: Scores,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingExtraError, match=rf'this needs {package}, .* "lightning-sgdinf\[({extra})\]"'):
        use(scores, path)
    assert not list(tmp_path.iterdir())
