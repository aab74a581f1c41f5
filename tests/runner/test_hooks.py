"""Hooks of a module and of its data module see the step, the stage and the Trainer that they saw in training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_sgdinf.errors import TrainerAttributeError
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


def test_every_public_attribute_of_a_trainer_is_answered_or_refused_by_name() -> None:
    from lightning_sgdinf.replay.stand_in import TrainerStandIn

    stand_in = TrainerStandIn()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for name in {*dir(pl.Trainer), *vars(trainer)}:
        if name.startswith("_"):
            continue
        with suppress(TrainerAttributeError):
            getattr(stand_in, name)
            continue
        with pytest.raises(TrainerAttributeError, match=f"reads trainer.{name},"):
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
