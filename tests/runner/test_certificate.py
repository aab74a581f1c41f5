"""The certificate holds for what is right and breaks for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import Certificate, InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.adjoint.adjoint import Adjoint
from lightning_sgdinf.adjoint.step import AdjointStep, PulledStep
from lightning_sgdinf.errors import CertificateError, DataMismatchError, StepMismatchError
from lightning_sgdinf.estimators import Estimator, NoHessian, SgdInfluence
from lightning_sgdinf.kernels.running_statistics import RunningStatistics
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.state import ModelState
from tests.adjoint.cases import BY_NAME, Case, Recorded, altered, edited, record, replayer, thinned
from tests.adjoint.models import CLASSES, MODELS, Classifier, Model, Named

RIGHT = (
    "sgd-repeats-clip",
    "momentum-pairs",
    "dampened",
    "momentum-ema",
    "momentum-sometimes",
    "adamw-groups",
    "adamw-batchnorm",
    "nadam",
    "rmsprop-dead",
    "asgd",
    "batchnorm-twice",
    "batchnorm-cumulative",
    "batchnorm-ema",
    "batchnorm-swa",
)


def certificate(run: Recorded, log: MemoryLog | None = None, *, level: Any = "full", **more: Any) -> Certificate:
    runner = InfluenceRunner(accelerator="cpu", certificate=level, progress=False)
    checked = runner.run(run.module, run.train, run.validation, log=log or run.log, **more).certificate
    assert checked is not None
    return checked


@pytest.mark.parametrize("name", RIGHT)
def test_holds_for_right_runs(name: str) -> None:
    run = record(BY_NAME[name])
    checked = certificate(run)
    assert checked.level == "full"
    assert checked.step_replay is not None
    assert checked.step_replay.steps == len(run.log)
    assert checked.step_replay.largest_deviation < 1e-5  # torch's differentiable steps round differently
    assert checked.gradient_check is not None
    assert checked.gradient_check.first_step == 0
    assert len(checked.gradient_check.measured) == 4
    assert checked.gradient_check.relative_error < 1e-4
    assert checked.trust is not None
    drawn = {int(j) for t in range(len(run.log)) for j in run.log.step(t).example_ids}
    assert checked.gradient_check.examples == checked.trust.population == len(drawn)
    assert set(checked.trust.example_ids) == drawn
    assert checked.trust.is_whole


@pytest.mark.parametrize(
    "name", ["sgd", "momentum-pairs", "dampened", "sgd-value", "momentum-sometimes", "momentum-cycle"]
)
def test_sgd_is_replayed_bit_for_bit(name: str) -> None:
    run = record(BY_NAME[name])
    replayed = certificate(run, level="fast").step_replay
    assert replayed is not None
    assert (replayed.bitwise, replayed.largest_deviation) == (len(run.log), 0.0)


@pytest.mark.parametrize("name", ["momentum", "adamw-groups", "batchnorm"])
@pytest.mark.parametrize("level", ["fast", "full"])
def test_float32_runs_are_checked_in_float64(name: str, level: str) -> None:
    run = record(altered(BY_NAME[name], dtype=torch.float32))
    checked = certificate(run, level=level)
    assert checked.gradient_check is not None
    assert checked.gradient_check.relative_error < 1e-3
    assert checked.step_replay is not None
    assert checked.step_replay.largest_deviation < 1e-3


@pytest.mark.parametrize("name", ["sgd", "sgd-mlp-ragged", "momentum"])
def test_smooth_models_are_trusted(name: str) -> None:
    trust = certificate(record(altered(BY_NAME[name], schedule=lambda t, group: {"lr": 0.02}))).trust
    assert trust is not None
    assert trust.correlation > 0.95
    assert not trust.is_low
    assert trust.low == trust.correlation == trust.high == trust.headline  # every example was left out
    assert trust.slope == pytest.approx(1, abs=0.3)
    assert trust.right_signs is not None
    assert trust.right_signs >= 0.9


def test_fast_looks_at_a_window_and_off_says_so() -> None:
    run = record(BY_NAME["momentum"])
    fast, off = certificate(run, level="fast"), certificate(run, level="off")
    assert fast.gradient_check is not None
    assert 0 < fast.gradient_check.first_step < len(run.log)
    assert off.step_replay is off.gradient_check is off.trust is None
    checked, amplifies = off.warnings
    assert checked == "Nothing was checked (certificate='off')."
    assert amplifies.startswith("This run amplifies small changes")
    assert off.amplification == fast.amplification  # a by-product of the walk


def test_the_window_may_start_at_a_state_that_is_not_stored() -> None:
    run = record(BY_NAME["momentum"])
    sparse = thinned(run.log, range(0, len(run.log), 5))
    dense, sparsely = certificate(run, level="fast"), certificate(run, sparse, level="fast")
    assert sparsely.gradient_check == dense.gradient_check


def test_trust_may_start_at_a_state_that_is_not_stored() -> None:
    run = record(BY_NAME["momentum"])
    dense, sparsely = certificate(run), certificate(run, thinned(run.log, range(0, len(run.log), 5)))
    assert sparsely.trust is not None
    assert dense.trust is not None
    assert sparsely.trust.measured == dense.trust.measured


@pytest.mark.parametrize("estimator", [NoHessian(), SgdInfluence(curvature_scale=0.5)])
def test_estimators_that_are_no_derivative_have_no_gradient_check(estimator: Estimator) -> None:
    checked = certificate(record(BY_NAME["momentum"]), estimator=estimator)
    assert checked.gradient_check is None
    assert checked.trust is not None


# Faults that a run can have by itself ------------------------------------------------------------------------------


class _CutSquare(torch.autograd.Function):
    """A square whose second derivative is cut off, as careless custom functions have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * grad


class Faulty(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 4), nn.Linear(4, CLASSES)
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self.two(self.middle(self.one(x)))

    def middle(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden)


class CutFunction(Faulty):
    def middle(self, hidden: Tensor) -> Tensor:
        return _CutSquare.apply(torch.tanh(hidden))


class DetachedFactor(Faulty):
    """A focal loss whose factor is detached, which depends on the weights all the same."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        each = F.cross_entropy(self(x), y, reduction="none")
        return ((1 - torch.exp(-each.detach())) ** 2 * each).mean()


class MovingBuffer(Faulty):
    """The forward pass moves a buffer that the loss depends on, without a graph."""

    def middle(self, hidden: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.centre.mul_(0.3).add_(hidden.mean(0), alpha=0.7)
        return torch.tanh(hidden - self.centre)


class InstanceNormed(Faulty):
    """Running statistics that are not BatchNorm's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.norm = nn.InstanceNorm1d(4, track_running_stats=True, affine=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self.head(torch.tanh(self.norm(self.mix(x))).flatten(1))


def faulty(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Classifier], inputs: str = "mlp") -> Recorded:
    def twin(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> Any:
        raise AssertionError("there is no such function")

    monkeypatch.setitem(MODELS, "faulty", Model(make, twin, MODELS[inputs].inputs))
    return record(Case(name="faulty", model="faulty", options={"lr": 0.5}))


@pytest.mark.parametrize("level", ["fast", "full"])
def test_breaks_where_torch_does_not_give_the_second_derivative(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = faulty(monkeypatch, CutFunction, "mlp")
    with pytest.raises(
        CertificateError, match=r"the replay says .* central differences of a re-run say .*certificate='off'"
    ):
        certificate(run, level=level)
    certificate(run, level="off")


@pytest.mark.parametrize(
    ("kind", "inputs"), [(DetachedFactor, "mlp"), (MovingBuffer, "mlp"), (InstanceNormed, "attention")]
)
def test_scores_go_where_no_graph_leads(kind: type[Classifier], inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = certificate(faulty(monkeypatch, kind, inputs), level="full").gradient_check
    assert check is not None
    assert check.relative_error < 1e-6


def test_the_same_without_the_fault_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    check = certificate(faulty(monkeypatch, Faulty)).gradient_check
    assert check is not None
    assert check.relative_error < 1e-6


# Faults that replay could have -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["fast", "full"])
@pytest.mark.parametrize("name", ["batchnorm", "adamw-batchnorm"])
def test_breaks_without_running_statistics(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(BY_NAME[name])
    own = RunningStatistics._handle

    def constant(self: RunningStatistics, *arguments: Any) -> Any:
        out = own(self, *arguments)
        self.updates[:] = [replace(update, batch_statistic=update.batch_statistic * 0) for update in self.updates]
        return out

    monkeypatch.setattr(RunningStatistics, "_handle", constant)
    with pytest.raises(CertificateError, match="gradient check failed"):
        certificate(run, level=level)


class DividedTwice(SgdInfluence):
    """The Hessian term divided by the batch size once more, as in the reference's code."""

    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        without, pulled = at.pull(adjoint, curvature=0).adjoint.params, at.pull(adjoint)
        whole, size = pulled.adjoint, len(at.step.example_ids)
        return replace(pulled, adjoint=replace(whole, params=without + (whole.params - without) / size))


@pytest.mark.parametrize("level", ["fast", "full"])
def test_breaks_when_curvature_is_divided_twice(level: str) -> None:
    run = record(altered(BY_NAME["sgd-mlp-ragged"], options={"lr": 1.0}))
    with pytest.raises(CertificateError, match="gradient check failed"):
        certificate(run, level=level, estimator=DividedTwice())


class WrongSign(SgdInfluence):
    def visit(self, at: AdjointStep, adjoint: Adjoint) -> PulledStep:
        pulled = at.pull(adjoint)
        return replace(pulled, slopes=-pulled.slopes)


@pytest.mark.parametrize("level", ["fast", "full"])
def test_breaks_for_a_wrong_sign(level: str) -> None:
    with pytest.raises(CertificateError):
        certificate(record(BY_NAME["sgd"]), level=level, estimator=WrongSign())


# Questions without one answer ----------------------------------------------------------------------------------------


class Restless(TensorDataset):
    """Augmented by random numbers of its own, which no pass begins anew."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.own = torch.Generator().manual_seed(0)

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        x, *rest = super().__getitem__(index)
        return x + torch.randn(x.shape, generator=self.own, dtype=x.dtype), *rest


def test_validation_examples_that_differ_from_pass_to_pass_are_named() -> None:
    run = record(BY_NAME["sgd"])
    restless = DataLoader(Restless(*run.validation.dataset.tensors), batch_size=4)  # type: ignore[attr-defined]
    with pytest.raises(DataMismatchError, match=r"mean validation loss' has two values .* generator of their own"):
        certificate(replace(run, validation=restless), level="fast")


# Records that do not fit -------------------------------------------------------------------------------------------


def moved(state: ModelState, part: str, name: str, key: str = "") -> ModelState:
    new = state.clone()
    tensor = new.optimizer[name][key] if key else getattr(new, part)[name]
    tensor += 0.1
    return new


@pytest.mark.parametrize(
    ("name", "where", "called"),
    [
        ("momentum", ("params", "net.0.weight", ""), "parameter net.0.weight"),
        ("momentum", ("optimizer", "net.2.bias", "momentum_buffer"), "momentum_buffer of net.2.bias"),
        ("adamw", ("optimizer", "net.0.bias", "exp_avg"), "exp_avg of net.0.bias"),
        ("batchnorm", ("buffers", "net.1.running_var", ""), "buffer net.1.running_var"),
    ],
)
def test_a_state_that_something_else_changed_is_found(name: str, where: tuple[str, str, str], called: str) -> None:
    run = record(BY_NAME[name])
    changed = moved(run.log.state(3), *where)
    with replayer(run) as again:  # a callback that changed it once, and the run that went on from there
        later = {t: again.run(changed, 3, t) for t in range(3, len(run.log) + 1)}
    log = edited(run.log, states=later)
    with pytest.raises(StepMismatchError, match=f"step 2, taken again, .*{called}.*a callback"):
        certificate(run, log, level="fast")


@pytest.mark.parametrize("name", ["sgd", "adam", "momentum-groups"])
def test_a_step_with_another_learning_rate_is_found(name: str) -> None:
    run = record(BY_NAME[name])
    step = run.log.step(2)
    groups = tuple(replace(g, options={**g.options, "lr": 1.1 * g.options["lr"]}) for g in step.groups)
    with pytest.raises(StepMismatchError, match="step 2, taken again"):
        certificate(run, edited(run.log, steps={2: replace(step, groups=groups)}), level="fast")


def test_a_step_without_its_clipping_is_found() -> None:
    run = record(BY_NAME["sgd-repeats-clip"])
    with pytest.raises(StepMismatchError, match="step 4, taken again"):
        certificate(run, edited(run.log, steps={4: replace(run.log.step(4), clip=None)}), level="fast")


def test_a_run_that_moved_nothing_is_called_that(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(torch.randn(12, 3), torch.randn(12, 1)), batch_size=4)
    module = Still()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TrajectoryRecorder(tmp_path / "r.tlog")],
    )  # fmt: skip
    trainer.fit(module, data, data)
    scores = InfluenceRunner(accelerator="cpu", progress=False, certificate="full").run(
        module, data, data, log=tmp_path / "r.tlog"
    )
    assert not scores.values.any()
    (warning,) = scores.certificate.warnings
    assert warning.startswith("All scores are zero")
    assert "learning rate of 0" in warning
    assert "nan" not in " ".join([*scores.certificate.summary(), *scores.certificate.reach()])


class Still(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)
