"""Hooks of a module and of its data module see the step, the stage and the Trainer that they saw in training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import TrainerAttributeError, UnsupportedRunError
from tests.runner.hook_situations import EPOCHS, STEPS, Data, Formula, Net, expect, train

LAST = EPOCHS * STEPS
pytestmark = pytest.mark.filterwarnings("ignore:You have overridden `.*` in `LightningModule` but have passed in a")


class BatchHooks:
    """All three batch hooks, each with its own part of what the Trainer says; for a module or a data module."""

    def on_before_batch_transfer(self: Any, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * (2.0 if self.trainer.training else 3.0), batch[1]

    def transfer_batch_to_device(self: Any, batch: Any, device: Any, dataloader_idx: int) -> Any:
        assert self.trainer.validating is self.trainer.evaluating is not self.trainer.training
        assert self.trainer.state.stage == ("train" if self.trainer.training else "validate")
        assert not self.trainer.sanity_checking
        assert str(self.trainer.state.fn) in ("fit", "TrainerFn.FITTING")
        return batch[0] * (1 + 0.1 * self.trainer.current_epoch), batch[1]

    def on_after_batch_transfer(self: Any, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * (1 + 0.01 * self.trainer.global_step), batch[1]


class HookedNet(BatchHooks, Net):
    pass


class HookedData(BatchHooks, Data):
    pass


HOOKED = Formula(
    scale=lambda e, t, i: 2.0 * (1 + 0.1 * e) * (1 + 0.01 * t),
    end_scale=3.0 * (1 + 0.1 * (EPOCHS - 1)) * (1 + 0.01 * LAST),
)


def test_batch_hooks_of_the_module(tmp_path: Path) -> None:
    run = train(tmp_path, HookedNet())
    expect(run.scores(), HOOKED)
    expect(run.scores(HookedNet(), Data()), HOOKED)
    assert abs(run.logged["val_loss"] - HOOKED.scores()[0]) < 1e-12


def test_batch_hooks_of_the_data_module(tmp_path: Path) -> None:
    run = train(tmp_path, Net(), HookedData())
    trainer = run.data.trainer
    expect(run.scores(), HOOKED)
    assert run.data.trainer is trainer, "the data module is given back with the Trainer that it had"
    expect(run.scores(Net(), HookedData()), HOOKED)


class OfTheModule(Net):
    """Hooks that ask the module itself, and a loss that is shared with validation."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0] * (1 + 0.1 * self.current_epoch), batch[1]) if self.training else batch

    def loss(self, batch: Any, penalty: Any = 0.0) -> Tensor:
        return super().loss(batch, 0.1 * self.current_epoch + 0.01 * self.global_step)


def test_a_loss_that_reads_the_epoch_in_validation_and_truth(tmp_path: Path) -> None:
    run = train(tmp_path, OfTheModule())
    formula = Formula(
        scale=lambda e, t, i: 1 + 0.1 * e,
        penalty=lambda e, t, i: 0.1 * e + 0.01 * t,
        end_penalty=0.1 * (EPOCHS - 1) + 0.01 * LAST,
    )
    expect(run.scores(certificate="fast"), formula)


class Asking(Net):
    """A step that computes with everything a Trainer can be asked for."""

    def training_step(self, batch: Any) -> Tensor:  # it need not take the index
        t = self.trainer
        rate = self.optimizers().param_groups[0]["lr"]
        assert self.lr_schedulers().get_last_lr() == [rate] == [t.optimizers[0].param_groups[0]["lr"]]
        assert t.lr_scheduler_configs[0].interval == "epoch"
        assert (t.num_training_batches, t.max_epochs, t.max_steps, t.estimated_stepping_batches) == (3, 3, -1, 9)
        assert (t.world_size, t.num_devices, t.num_nodes, t.global_rank, self.local_rank) == (1, 1, 1, 0, 0)
        assert t.is_global_zero
        assert not t.fast_dev_run
        assert t.precision == "64-true"
        assert t.log_every_n_steps == 1
        assert (t.accumulate_grad_batches, t.gradient_clip_val, t.limit_val_batches) == (1, 50.0, 1.0)
        assert isinstance(t.strategy, pl.strategies.SingleDeviceStrategy)
        assert not isinstance(t.strategy, pl.strategies.DDPStrategy)
        assert t.strategy.root_device == self.device
        assert t.strategy.world_size == 1
        assert t.strategy.broadcast(3) == 3
        assert self.all_gather(torch.ones(1)).tolist() == [1.0]
        assert isinstance(t.datamodule, Data)
        assert t.model is t.lightning_module is self
        assert len(t.train_dataloader.dataset) == 12
        assert t.fit_loop.max_epochs == 3
        assert isinstance(self.logger, pl.loggers.CSVLogger)
        assert len(self.loggers) == 1
        assert isinstance(t.log_dir, str)
        assert isinstance(self.logger.save_dir, str)
        self.logger.experiment.log_metrics({"a": 1.0}, 1)
        self.logger.log_metrics({"a": 1.0}, step=self.global_step)
        with t.profiler.profile("nothing"):
            self.print("a line", end="")
        t.should_stop = False
        metric = t.callback_metrics.get("val_loss")
        if metric is not None:
            self.log("again", metric)
        self.log("rate", rate)
        place = t.fit_loop.epoch_loop.total_batch_idx
        assert t.fit_loop.epoch_loop.batch_progress.is_last_batch is t.is_last_batch
        assert t.fit_loop.epoch_loop.batch_progress.current.ready == t.fit_loop.epoch_loop.batch_idx + 1
        return self.loss(batch, 0.1 * place + 0.5 * t.is_last_batch + rate)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def test_a_step_is_answered_what_it_asks_the_trainer_for(tmp_path: Path) -> None:
    settings = {"log_every_n_steps": 1, "gradient_clip_val": 50.0}
    run = train(tmp_path, Asking(), logger=pl.loggers.CSVLogger(tmp_path), **settings)
    formula = Formula(
        penalty=lambda e, t, i: 0.1 * t + 0.5 * (i == STEPS - 1) + 0.3 * 0.5**e, rate=lambda e, t, i: 0.3 * 0.5**e
    )
    expect(run.scores(), formula)
    expect(run.scores(Asking(), Data()), formula)


def unknown_attribute(net: Any) -> Any:
    return net.trainer.distributed_sampler_kwargs


def unknown_part(net: Any) -> Any:
    return net.trainer.fit_loop.epoch_loop.manual_optimization


def unknown_method(net: Any) -> Any:
    return net.trainer.test(net)


def unknown_metric(net: Any) -> Any:
    return 1.0 * net.trainer.callback_metrics["val_loss"]


def unknown_metric_times_tensor(net: Any) -> Any:
    return net.net.bias.sum() * net.trainer.callback_metrics["val_loss"]


def unknown_by_a_property(net: Any) -> Any:
    return net.sampling


ASKED = {
    unknown_attribute: r"trainer\.distributed_sampler_kwargs",
    unknown_part: r"trainer\.fit_loop\.epoch_loop\.manual_optimization",
    unknown_method: r"trainer\.test",
    unknown_metric: r"trainer\.callback_metrics\['val_loss'\]",
    unknown_metric_times_tensor: r"trainer\.callback_metrics\['val_loss'\]",
    unknown_by_a_property: r"trainer\.distributed_sampler_kwargs",
}


class Prying(Net):
    """Asks in replay for what it did not ask for in training: a step that did would fail there in other ways."""

    ask: Any = staticmethod(lambda net: 0)

    @property
    def sampling(self) -> Any:
        return self.trainer.distributed_sampler_kwargs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.ask(self)
        return self.loss(batch)


@pytest.fixture(scope="module")
def prying(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("prying"), Prying())


@pytest.mark.parametrize("ask", ASKED, ids=lambda ask: ask.__name__)
def test_what_the_record_does_not_have_is_named(prying: Any, ask: Any) -> None:
    module = Prying()
    module.ask = ask
    with pytest.raises(TrainerAttributeError, match=f"the step reads {ASKED[ask]}, which is not part of the record"):
        prying.scores(module)


def test_asking_whether_the_trainer_has_something_is_no_error(prying: Any) -> None:
    module = Prying()
    module.ask = lambda net: (
        hasattr(net.trainer, "no_such_thing") or getattr(net.trainer, "distributed_sampler_kwargs", None)
    )
    expect(prying.scores(module), Formula())


class Scheduled(Prying):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 100)]


def look_around(net: Any) -> None:
    trainer = net.trainer
    assert sum(isinstance(callback, pl.callbacks.EarlyStopping) for callback in trainer.callbacks) == 1
    assert isinstance(trainer.early_stopping_callback, pl.callbacks.EarlyStopping)
    assert trainer.checkpoint_callback is None
    assert isinstance(trainer.datamodule, Data)
    assert not trainer.predicting
    trainer.should_stop, trainer.max_epochs, trainer.fit_loop.max_epochs = True, 5, 5
    trainer.save_checkpoint("nowhere.ckpt")
    net.lr_schedulers().step()
    net.optimizers().param_groups[0]["lr"] = 7.0
    with pytest.raises(TrainerAttributeError, match=r"trainer\.callbacks\[\d\]\.best_score"):
        print(trainer.early_stopping_callback.best_score)


def test_callbacks_are_there_by_their_class_and_what_is_set_changes_nothing(tmp_path: Path) -> None:
    stopping = pl.callbacks.EarlyStopping("val_loss", patience=9)
    run = train(tmp_path, Scheduled(), callbacks=[stopping])
    module = Scheduled()
    module.ask = look_around
    expect(run.scores(module), Formula())
    loaders = Data()
    module.ask = lambda net: net.trainer.datamodule.size
    runner = InfluenceRunner(accelerator="cpu", progress=False)
    with pytest.raises(TrainerAttributeError, match=r"reads trainer\.datamodule\.size"):
        runner.run(module, loaders.train_dataloader(), loaders.val_dataloader(), log=run.path)


PARTS = ("fit_loop", "fit_loop.epoch_loop", "fit_loop.epoch_loop.batch_progress", "strategy", "logger")


@pytest.mark.parametrize("part", ["", *PARTS])
def test_every_public_attribute_of_a_trainer_is_answered_or_refused_by_name(part: str) -> None:
    from lightning_sgdinf.replay.stand_in import TrainerStandIn

    stand_in: Any = TrainerStandIn()
    trainer: Any = pl.Trainer(accelerator="cpu", logger=part == "logger", enable_checkpointing=False)
    for name in part.split(".") if part else ():
        stand_in, trainer = getattr(stand_in, name), getattr(trainer, name)
    for name in {*dir(type(trainer)), *vars(trainer)}:
        if name.startswith("_"):
            continue
        with suppress(TrainerAttributeError):
            getattr(stand_in, name)
            continue
        with pytest.raises(TrainerAttributeError, match=f"reads trainer.{part and part + '.'}{name},"):
            getattr(stand_in, name)


class TwoLoaders(Data):
    def val_dataloader(self) -> Any:
        from torch.utils.data import DataLoader, TensorDataset

        x, y = super().val_dataloader().dataset.tensors
        whole = super().val_dataloader()
        return [DataLoader(TensorDataset(x[:5], y[:5]), batch_size=5), whole]


class PerLoader(Net):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * (1 + dataloader_idx), batch[1]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Tensor:  # type: ignore[override]
        return self.loss(batch, 0.3 * dataloader_idx)


def test_one_of_several_validation_loaders(tmp_path: Path) -> None:
    from lightning_sgdinf.errors import ConfigurationError

    run = train(tmp_path, PerLoader(), TwoLoaders())
    formula = Formula(end_scale=2.0, end_penalty=0.3)
    expect(run.scores(val_loader=1), formula)
    expect(run.scores(data=Data(), val_loader=1), formula)  # its loader alone: the number says what it is
    with pytest.raises(ConfigurationError, match=r"got 2; say which, InfluenceRunner\(val_loader=0\)"):
        run.scores()
    with pytest.raises(ConfigurationError, match=r"val_loader=2: expected a number from 0 to 1"):
        run.scores(val_loader=2)
    with pytest.raises(ConfigurationError, match="takes dataloader_idx, and one loader was given"):
        run.scores(data=Data())


# What hooks set -------------------------------------------------------------------------------------------------------


class Anneals(Net):
    """Weights that hooks set, in every form."""

    def __init__(self) -> None:
        super().__init__()
        self.beta, self._hidden, self.count = 0.0, 0.0, 0
        self.weights = {"penalty": 0.0}
        self.schedule = Schedule()
        self.drop = nn.Dropout(0.0)
        self.small = torch.zeros(2, dtype=torch.float64)
        self.phase = "warm"
        self.kept: list[Any] = []

    def on_train_start(self) -> None:
        self.scale = 0.5

    def on_train_epoch_start(self) -> None:
        self.beta = 0.1 * self.current_epoch
        self.phase = "hot" if self.current_epoch else "warm"
        self.small[0] = 0.02 * self.current_epoch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._hidden = 0.01 * self.global_step
        self.schedule.value = np.float64(0.003 * batch_idx)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.drop.p = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights["penalty"] = 0.001 * (self.global_step)
        self.kept.append(float(outputs["loss"]))

    def on_train_end(self) -> None:
        self.beta = self._hidden = 100.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count += 1
        penalty = self.beta + self._hidden + self.schedule.value + self.weights["penalty"] + float(self.small.sum())
        penalty = penalty + 0.0001 * self.count + (0.05 if self.phase == "hot" else 0.0)
        return self.loss((self.drop(batch[0]), batch[1]), self.scale * penalty + self.by_callback)

    by_callback = 0.0


class Schedule:
    value = 0.0


class KlAnnealing(pl.Callback):
    """Sets an attribute of the module that its class knows, and its instances do not."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.by_callback = 0.2 * trainer.global_step


ANNEALED = Formula(
    penalty=lambda e, t, i: (
        0.5 * (0.1 * e + 0.02 * e + 0.01 * t + 0.003 * i + 0.001 * t + 0.0001 * (t + 1) + 0.05 * (e > 0)) + 0.2 * t
    )
)


def test_what_hooks_and_callbacks_set_is_as_it_was_at_every_step(tmp_path: Path) -> None:
    run = train(tmp_path, Anneals(), callbacks=[KlAnnealing()])
    before = dict(vars(run.module))
    scores = run.scores(certificate="fast")
    expect(scores, ANNEALED)
    assert any("held as recorded" in note and "schedule.value" in note for note in scores.certificate.notes)
    assert {k: v for k, v in vars(run.module).items() if k != "_parameters"} == {
        k: v for k, v in before.items() if k != "_parameters"
    }
    expect(run.scores(Anneals()), ANNEALED)
    assert not hasattr(Anneals(), "scale")


class AnnealsABuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(0.0))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.beta.fill_(0.1 * self.global_step)  # type: ignore[operator,union-attr]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch, self.beta)


class AnnealsANumber(Net):
    """What the error of the other says to do."""

    beta = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.beta = 0.1 * self.global_step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch, self.beta)


def test_a_buffer_that_a_schedule_sets_is_refused_with_a_way_out_that_works(tmp_path: Path) -> None:
    run = train(tmp_path / "buffer", AnnealsABuffer())
    with pytest.raises(UnsupportedRunError, match=r"changed buffer beta .* plain attribute"):
        run.scores()
    expect(train(tmp_path / "number", AnnealsANumber()).scores(), Formula(penalty=lambda e, t, i: 0.1 * t))


class Remembers(Net):
    """Carries from step to step what a step computed."""

    running = 0.0
    uses = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        loss = loss * (1 + self.uses * self.running)
        self.running = 0.9 * self.running + 0.1 * float(loss.detach())
        return loss


class UsesMemory(Remembers):
    uses = 0.1


class UsesMemoryOnce(Net):
    """Keeps a number in the first epoch, and computes with it in one step of a later one."""

    kept = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.current_epoch == 0:
            self.kept = 1 + 0.1 * float(loss.detach())
        return loss * self.kept if self.global_step == STEPS + 1 else loss


class Prepares(Net):
    """Makes in a hook what its validation needs, from its parameters."""

    def on_validation_start(self) -> None:
        self.table = 2.0 * self.net.weight

    def on_validation_end(self) -> None:
        del self.table

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(nn.functional.linear(batch[0], self.table / 2, self.net.bias), batch[1])


def test_hooks_of_the_start_of_a_validation_are_run(tmp_path: Path) -> None:
    run = train(tmp_path, Prepares())
    expect(run.scores(certificate="fast"), Formula())
    assert not hasattr(run.module, "table")


class LargeMemory(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.cache = torch.full((30, 4), 0.01 * self.global_step, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch, self.cache.mean())


def test_what_a_step_computes_for_the_next_is_noticed(tmp_path: Path) -> None:
    expect(train(tmp_path / "only kept", Remembers()).scores(), Formula())
    with pytest.raises(UnsupportedRunError, match=r"computes with self\.running, which an earlier step made"):
        train(tmp_path / "used", UsesMemory()).scores()
    with pytest.raises(UnsupportedRunError, match=r"computes with self\.kept"):
        train(tmp_path / "once", UsesMemoryOnce()).scores()
    with pytest.raises(UnsupportedRunError, match=r"reads self\.cache, a Tensor of shape \[30, 4\] that changes"):
        train(tmp_path / "large", LargeMemory()).scores()


# Compiled parts -------------------------------------------------------------------------------------------------------


def no_compiler(graph: Any, inputs: Any) -> Any:
    raise AssertionError("compiled in replay, where no second derivative comes of it")


class Deep(Net):
    """A part that a subclass compiles, with a mode and buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        layer = self.net
        self.net = nn.Sequential(layer, nn.BatchNorm1d(3, dtype=torch.float64))
        self.net[1].eval()
        self.fixed = nn.Linear(3, 3, dtype=torch.float64)
        self.fixed.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(self.net(x))

    def loss(self, batch: Any, penalty: Any = 0.0) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.3, momentum=0.5)


class Compiled(Deep):
    def setup(self, stage: str) -> None:
        self.net = torch.compile(self.net, backend=no_compiler)
        self.fixed = torch.compile(self.fixed, backend=no_compiler)


class CompiledInPlace(Deep):
    def setup(self, stage: str) -> None:
        self.net.compile(backend=no_compiler)


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training")
def test_compiled_parts_are_replayed_as_they_are_written(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", Deep())
    expected = plain.scores().values
    for kind in (Compiled, CompiledInPlace):
        with torch.compiler.set_stance("force_eager"):
            run = train(tmp_path / kind.__name__, kind())
        for module in (run.module, Deep(), torch.compile(Deep(), backend=no_compiler)):
            assert torch.allclose(run.scores(module).values, expected, rtol=1e-9, atol=1e-12)
    compiled = Deep()
    compiled.net = torch.compile(compiled.net, backend=no_compiler)
    assert torch.allclose(plain.scores(compiled, certificate="fast").values, expected, rtol=1e-9, atol=1e-12)


# Metrics --------------------------------------------------------------------------------------------------------------


class SquaredOutputs(torchmetrics.Metric):
    """A mean over all that it saw; as a loss, the mean over one batch."""

    full_state_update = False
    is_differentiable = True

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, z: Tensor) -> None:
        self.total = self.total + nn.functional.mse_loss(z, torch.zeros_like(z), reduction="none").mean(1).sum()
        self.count = self.count + len(z)

    def compute(self) -> Tensor:
        return self.total / self.count


class MetricLoss(Net):
    def __init__(self) -> None:
        super().__init__()
        self.penalty, self.logs = SquaredOutputs(), SquaredOutputs()
        self.accuracy = torchmetrics.MetricCollection([torchmetrics.classification.MulticlassAccuracy(3)])

    def loss(self, batch: Any, penalty: Any = 0.0) -> Tensor:
        z = self.net(batch[0])
        self.log_dict(self.accuracy(z.detach(), batch[1]))
        return super().loss(batch) + 0.1 * self.penalty(z)


class RoundedMetricLoss(MetricLoss):
    """Its metric adds up in place, in float32 whatever the step computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.penalty = AddsInPlace(torch.float32)


class AddsInPlace(SquaredOutputs):
    def update(self, z: Tensor) -> None:
        self.total += nn.functional.mse_loss(z, torch.zeros_like(z), reduction="none").mean(1).sum()
        self.count += len(z)


def test_metrics_in_the_loss_do_not_round_what_is_checked(tmp_path: Path) -> None:
    run = train(tmp_path, RoundedMetricLoss())
    scores = run.scores(certificate="fast")
    # Its own training rounds: what goes back through the sum is in float32.
    expect(scores, Formula(penalty=lambda e, t, i: 0.1, end_penalty=0.1), 1e-6)
    assert scores.certificate is not None
    assert scores.certificate.gradient_check is not None
    assert scores.certificate.gradient_check.relative_error < 1e-6
    assert run.module.penalty.total.dtype == torch.float32


def test_metrics_in_the_loss_compute_and_others_are_silent(tmp_path: Path) -> None:
    run = train(tmp_path, MetricLoss())
    run.module.penalty.total = run.module.net.weight.sum()  # metrics may keep graphs
    state = {k: v.clone() for k, v in run.module.penalty.metric_state.items()}
    formula = Formula(penalty=lambda e, t, i: 0.1, end_penalty=0.1)
    expect(run.scores(certificate="fast"), formula)
    expect(run.scores(MetricLoss()), formula)
    assert all(torch.equal(v, run.module.penalty.metric_state[k]) for k, v in state.items())
    assert "forward" not in vars(run.module.penalty)
