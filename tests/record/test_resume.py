"""A fit that is resumed from a checkpoint goes on in the log it began."""

import shutil
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError, LogExistsError, LogLockedError, ResumeError
from lightning_sgdinf.log import LogWriter, RunLog
from lightning_sgdinf.log.records import CONTINUED
from lightning_sgdinf.log.store import LogStore
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.record.resume import CHECKPOINT_KEY
from tests.log.cases import described

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:.*goes on with step .* are dropped"),
]


class Stop(Exception):
    pass


class StopAt(pl.Callback):
    """Breaks off after so many batches; before that, takes a copy of the log as a killed process would leave it."""

    def __init__(self, batches, path=None, copy=None):
        self.batches, self.path, self.copy = batches, path, copy

    def on_train_batch_end(self, trainer, module, *args):
        if len(module.done) == self.batches:
            if self.copy:
                shutil.copytree(self.path, self.copy)
            raise Stop


def saver(tmp_path, **options):
    return ModelCheckpoint(
        dirpath=tmp_path / "checkpoints", filename="{step}", save_top_k=-1,
        **({"every_n_train_steps": 3} | options),
    )  # fmt: skip


def go(lab, path, *callbacks, net=None, ckpt=None, data=None, recorder=None, error=None, **kwargs):
    """One fit with recorder and, from ``ckpt``, resumed."""
    recorder = recorder or TrajectoryRecorder(path)
    net = net or lab.Net()
    lab.seed()
    trainer = pl.Trainer(
        callbacks=[recorder, *callbacks], logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", num_sanity_val_steps=0,
        **({"max_epochs": 2, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)} | kwargs),
    )  # fmt: skip

    def fit():
        trainer.fit(net, lab.loader() if data is None else data, ckpt_path=ckpt, weights_only=False)

    if error:
        with pytest.raises(error) as info:
            fit()
        net.error = info.value
    else:
        fit()
    net.trained = trainer
    return net


def broken_off(lab, tmp_path, batches=7, **kwargs):
    """A run that stops after so many batches, with checkpoints every three; and the path of its log."""
    path = tmp_path / "run.tlog"
    return go(lab, path, saver(tmp_path), StopAt(batches), error=Stop, **kwargs), path


def checkpoint(tmp_path, steps):
    return tmp_path / "checkpoints" / f"step={steps}.ckpt"


# Going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 6])
def test_in_the_middle_of_an_epoch(lab, tmp_path, steps):
    first, path = broken_off(lab, tmp_path)
    with pytest.warns(UserWarning, match=rf"goes on with step {steps}.*its steps {steps} to 6, taken after"):
        second = go(lab, path, ckpt=checkpoint(tmp_path, steps))
    second.done = first.done[:steps] + second.done
    lab.assert_faithful(path, second)
    with RunLog.open(path) as log:
        assert log.verify().ok
        assert len(list(log.segments())) > 1
        (entry,) = log.header.extra[CONTINUED]
        assert (entry["step"], entry["max_epochs"]) == (steps, 2)
        assert not any(step.changed for step in log.steps(0, len(log)))


def test_for_more_epochs_and_with_fewer_states(lab, tmp_path):
    first, path = broken_off(lab, tmp_path)
    fewer = TrajectoryRecorder(path, keep="every(2)")
    second = go(lab, None, recorder=fewer, ckpt=checkpoint(tmp_path, 6), max_epochs=3)
    second.done = first.done[:6] + second.done
    with RunLog.open(path) as log:
        assert len(log) == len(second.done) == 12
        assert log.header.extra["max_epochs"] == 3
        assert log.header.keep == "every_step; from step 6 every(2)"
        assert not log.verify().problem


@pytest.mark.parametrize("again", [False, True])
def test_after_a_kill(lab, tmp_path, again):
    """All that the log needs to go on was flushed when the checkpoint was saved."""
    path, left = tmp_path / "run.tlog", tmp_path / "left" / "run.tlog"
    first = go(lab, path, saver(tmp_path), StopAt(7, path, left), error=Stop)
    assert list(left.glob("live-*"))
    assert not (left / "end.h5").exists()
    second = go(lab, left, *([StopAt(1)] if again else []), ckpt=checkpoint(tmp_path, 6), error=Stop if again else None)
    if again:
        second = go(lab, left, ckpt=checkpoint(tmp_path, 6))
    second.done = first.done[:6] + second.done
    lab.assert_faithful(left, second)


class EpochSampler(torch.utils.data.Sampler):
    """An order for each epoch, which goes on in the middle of one."""

    def __init__(self):
        self.epoch = self.taken = 0

    def __len__(self):
        return 4

    def __iter__(self):
        batches = torch.randperm(20, generator=torch.Generator().manual_seed(self.epoch)).view(4, 5).tolist()
        start, self.taken = self.taken, 0
        self.epoch += 1
        yield from batches[start:]


def own_order(lab, *, taken=0):
    sampler = EpochSampler()
    sampler.epoch, sampler.taken = divmod(taken, 4)
    return DataLoader(lab.Examples(augment=False), batch_sampler=sampler)


def double_net(lab):
    net = lab.Net(dropout=0.0, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    return net.double()


def test_a_resumed_run_is_explained_like_one_that_was_not_interrupted(lab, tmp_path):
    """Same steps, same states, same scores, bit for bit; in float64."""

    def run(path, *callbacks, taken=0, **kwargs):
        data = own_order(lab, taken=taken)
        return go(
            lab, path, *callbacks, net=double_net(lab), data=data, precision="64-true", use_distributed_sampler=False,
            **kwargs,
        )  # fmt: skip

    whole = run(tmp_path / "whole.tlog", max_epochs=3)
    path = tmp_path / "run.tlog"
    run(path, saver(tmp_path), StopAt(8), error=Stop, max_epochs=3)
    resumed = run(path, ckpt=checkpoint(tmp_path, 6), taken=6, max_epochs=3)
    assert lab.same(dict(resumed.state_dict()), dict(whole.state_dict())), "the test is degenerate: the runs differ"
    with RunLog.open(tmp_path / "whole.tlog") as one, RunLog.open(path) as other:
        assert len(one) == len(other) == 12
        for t in range(13):
            assert one.state_checksum(t) == other.state_checksum(t)
        for a, b in zip(one.steps(0, 12), other.steps(0, 12), strict=True):
            assert a.example_ids.tolist() == b.example_ids.tolist()
            assert (a.loss, a.epoch, a.global_step) == (b.loss, b.epoch, b.global_step)
            assert described(a.groups) == described(b.groups)
    values = []
    for log in (tmp_path / "whole.tlog", path):
        net = double_net(lab)
        net.noting = False
        net.validation_step = lambda batch, batch_idx, net=net: net.compute(batch)
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
        loader = DataLoader(lab.Examples(augment=False), batch_size=11)
        values.append(runner.run(net, loader, loader, log=log).values)
    assert values[0].abs().max() > 0
    assert torch.equal(*values)


def test_with_more_epochs_after_the_end(lab, tmp_path):
    path = tmp_path / "run.tlog"
    first = go(lab, path, saver(tmp_path, every_n_train_steps=8))
    with RunLog.open(path) as log:
        assert log.finished
    second = go(lab, path, ckpt=checkpoint(tmp_path, 8), max_epochs=4)
    second.done = first.done + second.done
    assert len(second.done) == 16
    lab.assert_faithful(path, second)


def test_from_a_checkpoint_that_was_saved_after_the_fit(lab, tmp_path):
    path = tmp_path / "run.tlog"
    first = go(lab, path)
    first.trained.save_checkpoint(tmp_path / "final.ckpt")
    second = go(lab, path, ckpt=tmp_path / "final.ckpt", max_epochs=3)
    second.done = first.done + second.done
    lab.assert_faithful(path, second)


def test_with_the_same_recorder_and_accumulated_gradients(lab, tmp_path):
    path = tmp_path / "run.tlog"
    recorder = TrajectoryRecorder(path)
    options = {"recorder": recorder, "accumulate_grad_batches": 2, "max_epochs": 4}
    first = go(lab, path, saver(tmp_path), StopAt(4), error=Stop, **options)
    second = go(lab, path, ckpt=checkpoint(tmp_path, 3), **options)
    second.done = first.done[:3] + second.done
    lab.assert_faithful(path, second)
    assert recorder.path == path
    assert not (tmp_path / "run-2.tlog").exists()


def test_an_average_goes_on(lab, tmp_path):
    def averaging():
        return WeightAveraging(avg_fn=get_ema_avg_fn(0.8))

    path = tmp_path / "run.tlog"
    go(lab, path, averaging(), saver(tmp_path), StopAt(7), error=Stop)
    second = go(lab, path, averaging(), ckpt=checkpoint(tmp_path, 6))
    with RunLog.open(path) as log:
        assert log.average is not None
        value = log.state(0).params["body.0.weight"]
        for step in log.steps(0, len(log)):
            a, b = step.average
            value = a * value + b * log.state(step.index + 1).params["body.0.weight"]
        assert torch.allclose(value, log.average["body.0.weight"], atol=1e-6)
        assert torch.allclose(value, second.body[0].weight, atol=1e-6)


# What is in a checkpoint ----------------------------------------------------------------------------------------


def test_bookmarks_are_plain(lab, tmp_path):
    _, path = broken_off(lab, tmp_path)
    saved = torch.load(checkpoint(tmp_path, 6), weights_only=True)
    (bookmark,) = saved[CHECKPOINT_KEY]
    with RunLog.open(path) as log:
        assert bookmark["run_id"] == log.header.run_id
        assert bookmark["path"] == str(path)
        assert bookmark["steps"] == 6
        assert bookmark["last"][1] == log.state_checksum(5)


def test_several_recorders(lab, tmp_path):
    paths = tmp_path / "a.tlog", tmp_path / "b.tlog"
    second = TrajectoryRecorder(paths[1], keep="final")
    first = go(lab, paths[0], second, saver(tmp_path), StopAt(7), error=Stop)
    second = TrajectoryRecorder(paths[1], keep="final")
    net = go(lab, paths[0], second, ckpt=checkpoint(tmp_path, 6))
    net.done = first.done[:6] + net.done
    lab.assert_faithful(paths[0], net)
    with RunLog.open(paths[0]) as one, RunLog.open(paths[1]) as other:
        assert [one.state_checksum(t) for t in range(9)] == [other.state_checksum(t) for t in range(9)]


# What does not fit ----------------------------------------------------------------------------------------------


def test_a_log_that_is_elsewhere(lab, tmp_path):
    first, path = broken_off(lab, tmp_path)
    elsewhere = tmp_path / "new.tlog"
    with pytest.warns(UserWarning, match=r"log of its own.*steps 0 to 5 were recorded in .*run\.tlog, and there is no"):
        second = go(lab, elsewhere, ckpt=checkpoint(tmp_path, 6))
    lab.assert_faithful(elsewhere, second)
    with RunLog.open(elsewhere) as log:
        assert log.header.extra["starts_at"]["global_step"] == 6
        assert CONTINUED not in log.header.extra
    with RunLog.open(path) as log:
        assert len(log) == len(first.done) == 7
    strict = TrajectoryRecorder(tmp_path / "other.tlog", resume="require")
    net = go(lab, None, recorder=strict, ckpt=checkpoint(tmp_path, 6), error=ResumeError)
    assert "give TrajectoryRecorder its path" in str(net.error)
    assert not net.calls


def test_another_log_in_its_place(lab, tmp_path):
    broken_off(lab, tmp_path)
    other = tmp_path / "other.tlog"
    go(lab, other)
    before = sorted((p.name, p.read_bytes()) for p in other.glob("*.h5"))
    with pytest.warns(UserWarning, match="there is the log of another run"):
        go(lab, other, ckpt=checkpoint(tmp_path, 6), error=LogExistsError)
    assert sorted((p.name, p.read_bytes()) for p in other.glob("*.h5")) == before
    fresh = TrajectoryRecorder(other, overwrite=True)
    with pytest.warns(UserWarning, match="there is the log of another run"):
        net = go(lab, None, recorder=fresh, ckpt=checkpoint(tmp_path, 6))
    lab.assert_faithful(other, net)


def test_a_log_that_ends_before_the_checkpoint(lab, tmp_path):
    path, early = tmp_path / "run.tlog", tmp_path / "early" / "run.tlog"
    go(lab, path, saver(tmp_path), StopAt(4, path, early), error=Stop)
    shutil.rmtree(tmp_path / "run.tlog")
    shutil.copytree(early, path)
    go(lab, path, saver(tmp_path / "late", every_n_train_steps=8), ckpt=checkpoint(tmp_path, 3))
    net = go(lab, early, ckpt=checkpoint(tmp_path / "late", 8), error=ResumeError)
    assert "has 3 steps and the checkpoint stands at 8: steps 3 to 7 are not in the log" in str(net.error)
    assert not net.calls


def test_a_log_that_went_another_way(lab, tmp_path):
    _, path = broken_off(lab, tmp_path)
    go(lab, path, ckpt=checkpoint(tmp_path, 3), max_epochs=3)  # the order is not that of the first time
    before = sorted((p.name, p.read_bytes()) for p in path.glob("*.h5"))
    net = go(lab, path, ckpt=checkpoint(tmp_path, 6), error=ResumeError)
    assert "went another way" in str(net.error)
    assert sorted((p.name, p.read_bytes()) for p in path.glob("*.h5")) == before


def test_another_model(lab, tmp_path):
    first, path = broken_off(lab, tmp_path)

    class OtherNet(lab.Net):
        pass

    net = go(lab, path, net=OtherNet(), ckpt=checkpoint(tmp_path, 6), error=ResumeError)
    assert "another model" in str(net.error)
    with RunLog.open(path) as log:
        assert len(log) == len(first.done)


def test_a_log_that_is_being_written(lab, tmp_path):
    _, path = broken_off(lab, tmp_path)
    with RunLog.open(path) as log:
        header = log.header
    writer = LogWriter(path, header=header, continue_at=7)
    go(lab, path, ckpt=checkpoint(tmp_path, 6), error=LogLockedError)
    writer.abandon("")


def test_never(lab, tmp_path):
    _, path = broken_off(lab, tmp_path)
    go(lab, None, recorder=TrajectoryRecorder(path, resume="never"), ckpt=checkpoint(tmp_path, 6), error=LogExistsError)
    recorder = TrajectoryRecorder(tmp_path / "rest.tlog", resume="never")
    net = go(lab, None, recorder=recorder, ckpt=checkpoint(tmp_path, 6))
    lab.assert_faithful(tmp_path / "rest.tlog", net)
    with pytest.raises(ConfigurationError, match="'auto', 'require', 'never'"):
        TrajectoryRecorder(path, resume="maybe")


def test_a_checkpoint_without_a_recorder(lab, tmp_path):
    lab.train(callbacks=[saver(tmp_path)], enable_checkpointing=True)
    with pytest.warns(UserWarning, match="saved without a TrajectoryRecorder"):
        net = go(lab, tmp_path / "run.tlog", ckpt=checkpoint(tmp_path, 6))
    lab.assert_faithful(tmp_path / "run.tlog", net)


def test_what_a_checkpoint_does_not_restore_is_named(lab, tmp_path):
    class CountingNet(lab.Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def compute(self, batch):
            self.seen += 1
            return super().compute(batch)

    first, path = broken_off(lab, tmp_path, net=CountingNet())
    with pytest.warns(UserWarning, match="buffer seen is not what the log has at step 6"):
        second = go(lab, path, net=CountingNet(), ckpt=checkpoint(tmp_path, 6))
    second.done = first.done[:6] + second.done
    lab.assert_faithful(path, second)
    with RunLog.open(path) as log:
        assert [step.index for step in log.steps(0, len(log)) if step.changed] == [6]
        assert log.step(6).changed == ("buffer seen",)


# After a full disk -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_run_whose_disk_is_full_names_the_last_one_that_can_be_used(lab, tmp_path, monkeypatch):
    path, add = tmp_path / "run.tlog", LogStore.add

    def full(self, step, *args, **kwargs):
        if step.index >= 4:
            raise OSError(28, "No space left on device")
        return add(self, step, *args, **kwargs)

    recorder = TrajectoryRecorder(path, when_full="stop_logging")
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch.setattr(LogStore, "add", full)
        first = go(lab, path, saver(tmp_path), recorder=recorder)
    assert len(first.done) == 8, "training was ended"
    usable = "the last checkpoint from which the log can go on was saved at global step 3, in epoch 0"
    assert any(f"{usable}; " in str(w.message) and "No space left" in str(w.message) for w in told)
    required = TrajectoryRecorder(path, resume="require")
    refused = go(lab, path, ckpt=checkpoint(tmp_path, 6), recorder=required, error=ResumeError)
    assert usable in str(refused.error)
    second = go(lab, path, ckpt=checkpoint(tmp_path, 3))  # as it says
    second.done = first.done[:3] + second.done
    lab.assert_faithful(path, second)
