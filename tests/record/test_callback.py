"""Around the fit: what is refused, what is skipped, and what is left when things go wrong."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, LogExistsError, LogWriteError
from lightning_sgdinf.log import LogWriter, RunLog
from lightning_sgdinf.record import TrajectoryRecorder, every
from lightning_sgdinf.record.resume import CHECKPOINT_KEY


class Stop(Exception):
    pass


def failing_net(lab, error, where="training_step", at=6):
    class FailingNet(lab.Net):
        def fail(self):
            if len(self.done) == at:
                raise error

        def training_step(self, batch, batch_idx):
            if where == "training_step":
                self.fail()
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *args):
            if where == "on_train_batch_end":
                self.fail()

    return FailingNet()


# Breaking off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["training_step", "on_train_batch_end"])
@pytest.mark.parametrize(
    ("error", "ends_in", "reason"),
    [(Stop("here"), Stop, "exception: Stop: here"), (KeyboardInterrupt(), SystemExit, "exception: KeyboardInterrupt")],
)
def test_a_run_that_breaks_off_keeps_its_complete_steps(lab, tmp_path, where, error, ends_in, reason):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    run = lab.train(failing_net(lab, error, where), callbacks=[recorder], error=ends_in)
    assert len(run.net.done) == 6
    lab.assert_faithful(recorder.path, run.net)
    with RunLog.open(recorder.path) as log:
        assert log.end_reason == reason
        assert not log.verify().problem
        assert lab.same(lab.as_dicts(log.state(6)), run.net.done[-1][1])
    assert not {"process_dataloader", "training_step"} & vars(run.trainer.strategy).keys()
    assert not {"convert_input", "clip_gradients"} & vars(run.trainer.precision_plugin).keys()
    assert len(run.net.trainer.optimizers[0]._optimizer_step_post_hooks) == 1  # the module's own


def test_a_run_that_breaks_off_before_its_first_step_leaves_nothing(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    lab.train(failing_net(lab, Stop(), at=0), callbacks=[recorder], error=Stop)
    assert not recorder.path.exists()


def test_after_a_failed_fit_the_next_one_is_recorded(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    lab.train(failing_net(lab, Stop(), at=0), callbacks=[recorder], error=Stop)
    run = lab.train(callbacks=[recorder])
    assert recorder.path == tmp_path / "run.tlog"
    lab.assert_faithful(recorder.path, run.net)


class FullDisk:
    """A writer that fails after a few steps."""

    def __init__(self, path, **kwargs):
        self.writer = LogWriter(path, **kwargs)
        self.puts = 0

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def put(self, *args, **kwargs):
        self.puts += 1
        if self.puts > 3:
            raise LogWriteError("the disk is full")
        self.writer.put(*args, **kwargs)


def test_a_writer_that_fails_stops_the_run_and_keeps_what_it_had(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", writer=FullDisk)
    with pytest.warns(UserWarning, match="could not be finished: the disk is full"):
        lab.train(callbacks=[recorder], error=LogWriteError)
    with RunLog.open(recorder.path) as log:
        assert len(log) == 2  # three steps were put; the state that the third led to was not
        assert not log.finished
        assert "the disk is full" in log.end_reason


# Paths ---------------------------------------------------------------------------------------------------------


def test_an_existing_path_is_refused_before_training(lab, tmp_path):
    (tmp_path / "run.tlog").mkdir()
    net = lab.Net()
    run = lab.train(net, callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")], error=LogExistsError)
    assert "overwrite=True" in str(run.error)
    assert net.calls == []


def test_overwrite(lab, tmp_path):
    lab.train(callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")])
    run = lab.train(callbacks=[TrajectoryRecorder(tmp_path / "run.tlog", overwrite=True)], epochs=1)
    lab.assert_faithful(tmp_path / "run.tlog", run.net)


@pytest.mark.parametrize("overwrite", [False, True])
def test_each_fit_has_its_own_log(lab, tmp_path, overwrite):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", overwrite=overwrite)
    first = lab.train(callbacks=[recorder])
    assert recorder.path == tmp_path / "run.tlog"
    done, first.net.done, first.net.calls = first.net.done, [], []
    first.trainer.fit_loop.max_epochs = 4
    lab.train(first.net, trainer=first.trainer)
    assert recorder.path == tmp_path / "run-2.tlog"
    lab.assert_faithful(recorder.path, first.net)
    with RunLog.open(recorder.path) as log:
        assert log.step(0).epoch == 2
        assert log.header.extra["starts_at"] == {"epoch": 2, "global_step": 8}
        assert lab.same(lab.as_dicts(log.state(0))["params"], done[-1][1]["params"])
    first.net.done = done
    lab.assert_faithful(tmp_path / "run.tlog", first.net)


def test_a_sibling_that_is_taken_is_passed_over(lab, tmp_path):
    (tmp_path / "run-2.tlog").mkdir()
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    lab.train(callbacks=[recorder], epochs=1)
    lab.train(callbacks=[recorder], epochs=1)
    assert recorder.path == tmp_path / "run-3.tlog"


# Not recorded --------------------------------------------------------------------------------------------------


def test_fast_dev_run_is_not_recorded(lab, tmp_path):
    (tmp_path / "run.tlog").mkdir()  # which it does not even mind
    run = lab.train(callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")], fast_dev_run=2)
    assert len(run.net.done) == 2
    assert not any((tmp_path / "run.tlog").iterdir())


def searching_net(lab):
    class SearchingNet(lab.Net):
        def __init__(self):
            self.lr = 0.1
            super().__init__(optimizer=lambda p: torch.optim.SGD(p, self.lr))

    return SearchingNet()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_search_by_the_tuner_is_not_recorded(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the search puts a checkpoint there
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[recorder], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    net = searching_net(lab)
    Tuner(trainer).lr_find(net, lab.loader(), num_training=6, update_attr=False)
    assert not recorder.path.exists()
    net.calls, net.done, net.seen_lrs = [], [], []
    run = lab.train(net, trainer=trainer)
    lab.assert_faithful(recorder.path, run.net)


def test_a_search_inside_the_fit_is_not_recorded(lab, tmp_path):
    class SearchThenForget(LearningRateFinder):
        def on_fit_start(self, trainer, module):
            super().on_fit_start(trainer, module)
            module.calls, module.done, module.seen_lrs = [], [], []

    def go(*more):
        return lab.train(
            searching_net(lab),
            callbacks=[SearchThenForget(num_training_steps=6), *more],
            default_root_dir=tmp_path,
            limit_val_batches=0,
        )

    plain = go()
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    recorded = go(recorder)
    lab.assert_untouched(plain, recorded)
    lab.assert_faithful(recorder.path, recorded.net)


# Nothing changes -----------------------------------------------------------------------------------------------


def test_checkpoints_are_the_same(lab, tmp_path):
    def go(name, *more):
        saver = ModelCheckpoint(dirpath=tmp_path / name, every_n_train_steps=3, save_top_k=-1, save_last=True)
        lab.train(callbacks=[saver, *more], enable_checkpointing=True, max_epochs=2)
        return {p.name: torch.load(p, weights_only=False) for p in sorted((tmp_path / name).iterdir())}

    plain = go("plain")
    recorded = go("recorded", TrajectoryRecorder(tmp_path / "run.tlog"))
    assert len(plain) == 3
    assert plain.keys() == recorded.keys()
    for name, checkpoint in plain.items():
        other = recorded[name]
        assert not other["callbacks"].keys() - checkpoint["callbacks"].keys()
        for saved in (checkpoint, other):
            saver = next(iter(saved["callbacks"].values()))
            for key in ("dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"):
                saver.pop(key)
        assert_same(checkpoint, other)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == [key for key in other if key != CHECKPOINT_KEY]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_random_streams_after_fit_are_the_same_for_every_loader(lab, tmp_path):
    def go(*callbacks):
        run = lab.train(callbacks=callbacks)
        # and what is drawn afterwards, from the same loader, too
        loader = run.trainer.train_dataloader
        return run.random, [b[2].tolist() for b in lab.loader()], random_state.capture(), type(loader)

    assert go() == go(TrajectoryRecorder(tmp_path / "run.tlog"))


def test_the_loader_is_the_users_to_look_at(lab, tmp_path):
    class LookingNet(lab.Net):
        def on_train_epoch_start(self):
            loader = self.trainer.train_dataloader
            assert isinstance(loader.dataset, lab.Examples)
            assert loader.dataset.augment
            assert len(loader.dataset) == lab.N
            assert loader.dataset[3][2] == 3
            assert loader.collate_fn([loader.dataset[3], loader.dataset[4]])[2].tolist() == [3, 4]
            loader.dataset.epoch = self.current_epoch

    data = lab.loader()
    dataset, collate = data.dataset, data.collate_fn
    run = lab.train(LookingNet(), data, callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")])
    assert data.dataset is dataset
    assert data.collate_fn is collate
    assert dataset.epoch == 1
    lab.assert_faithful(tmp_path / "run.tlog", run.net)


# What is stored ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "written", "stored"),
    [
        ("every_step", "every_step", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("every(3)", "every(3)", [0, 3, 6, 8]),
        (every(3), "every(3)", [0, 3, 6, 8]),
        ("last_epochs(1)", "last_epochs(1)", [0, 4, 5, 6, 7, 8]),
        ("final", "final", [8]),
    ],
)
def test_states_that_are_kept(lab, tmp_path, keep, written, stored):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", keep=keep)
    run = lab.train(callbacks=[recorder])
    with RunLog.open(recorder.path) as log:
        assert log.header.keep == written
        assert log.state_indices.tolist() == stored
        befores = [calls[0][2] for calls, _, _ in run.net.done] + [run.net.done[-1][1]]
        for index in reversed(stored):
            assert lab.same(lab.as_dicts(log.state(index)), befores[index])
        assert all(log.state_checksum(t) is not None for t in range(8))


def test_last_epochs_needs_max_epochs(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", keep="last_epochs(1)")
    run = lab.train(callbacks=[recorder], max_epochs=-1, max_steps=3, error=ConfigurationError)
    assert "every(k)" in str(run.error)


@pytest.mark.parametrize("keep", ["all", "every(0)", "every(-1)", "last_epochs()", 3])
def test_unknown_policies_are_refused(tmp_path, keep):
    with pytest.raises(ConfigurationError, match=r"every|at least 1"):
        TrajectoryRecorder(tmp_path / "run.tlog", keep=keep)


def test_header(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", codec="none")

    class ClippingNet(lab.Net):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")

    run = lab.train(ClippingNet(), callbacks=[recorder], accumulate_grad_batches=2)
    with RunLog.open(recorder.path) as log:
        header = log.header
        assert log.step(0).clip.value == 0.5
        assert log.step(0).clip.algorithm == "value"
        assert log.step(1).loss == run.net.losses[3]
    assert header.model.endswith("ClippingNet")
    assert header.optimizer == "torch.optim.sgd.SGD"
    assert header.parameters == tuple((n, tuple(p.shape), "float32") for n, p in run.net.named_parameters())
    assert header.constant_digest == 0
    assert header.precision == "32-true"
    assert header.replayable == ""
    assert [(name.rpartition(".")[2], size) for name, size in header.datasets] == [("Examples", lab.N)]
    assert header.extra["overrides"] == ["configure_gradient_clipping"]
    assert header.extra["max_epochs"] == 2
    assert header.extra["accumulate_grad_batches"] == 2
    assert header.extra["batch_sizes"] == [6]
    assert header.extra["world_size"] == 1
    assert header.environment["torch"] == torch.__version__
    assert header.environment["threads"] == torch.get_num_threads()
    assert header.environment["device"] == "cpu"


def test_batches_without_checksum(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", digest_batches=False)
    lab.train(callbacks=[recorder], epochs=1)
    with RunLog.open(recorder.path) as log:
        assert log.step(0).micro_batches[0].draws[0].digest is None
