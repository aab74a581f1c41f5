"""An error in any function of the recorder, whenever it is called, ends the recording and never touches the training.

The suite takes a sample of the functions; ``SGDINF_ALL_FAULTS=1`` takes every one, at its first, middle and last call.
"""

import collections
import os
import random
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_sgdinf.record
from lightning_sgdinf import random_state
from lightning_sgdinf.errors import SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record import TrajectoryRecorder

ROOM = str(Path(lightning_sgdinf.record.__file__).parent)
SEAM = {  # they hand on what the host asks for, or catch what the others raise
    "recorded_training_step",
    "recorded_clip_gradients",
    "process_dataloader",
    "setup_data",
    "convert_input",
    "watched_convert_input",
    "watched_validation_step",
    "update_parameters",
    "untracked",
    "unload",
    "write",
    "attach",
    "__getitems__",
    "__call__",
    "__init__",
    "__class__",
    "__getattr__",
    "__len__",
    "<lambda>",
    "<genexpr>",
    "<listcomp>",
    "path",
    "on_exception",
    "setup",
}
ALL = bool(os.environ.get("SGDINF_ALL_FAULTS"))


class Fault(Exception):
    pass


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.frozen = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.frozen(self.norm(self.a(batch[0]))), batch[1])
        self.log("loss", loss)
        return loss

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.frozen.requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": [*self.frozen.parameters()]})

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1, momentum=0.9)


def fit(folder, *recorders, averaged=False):
    """Return weights, generators and metrics of a short fit."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    net, examples = Net(), TensorDataset(torch.arange(12.0).view(4, 3).sin(), torch.tensor([0, 1, 1, 0]))
    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[
            *recorders,
            *([WeightAveraging()] if averaged else []),
            ModelCheckpoint(dirpath=folder, save_top_k=0, save_last=True),
        ],
    )
    trainer.fit(net, DataLoader(examples, 2, shuffle=True))
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {n: v.clone() for n, v in net.state_dict().items()}, random_state.capture(), metrics


def same(one, other):
    return all(torch.equal(v, other[0][n]) for n, v in one[0].items()) and one[1:] == other[1:]


def place(frame):
    return Path(frame.f_code.co_filename).stem, getattr(frame.f_code, "co_qualname", frame.f_code.co_name)


class Injector:
    """Counts the calls of the recorder's functions in this thread, and raises in one of them.

    It is a profile function, so that the error comes out of the very call.
    """

    def __init__(self, where=None, number=0):
        self.where, self.number, self.calls = where, number, collections.Counter()

    def __call__(self, frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOM) and code.co_name not in SEAM:
            where = place(frame)
            if where[0] != "guard":
                self.calls[where] += 1
                if where == self.where and self.calls[where] == self.number:
                    sys.setprofile(None)
                    raise Fault(f"injected into {where[1]}")

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *args):
        sys.setprofile(None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {averaged: fit(tmp_path_factory.mktemp("plain"), averaged=averaged) for averaged in (False, True)}


def called(folder, averaged):
    with Injector() as injector:
        fit(folder, TrajectoryRecorder(folder / "run.tlog"), averaged=averaged)
    return sorted(injector.calls.items())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="functions are told apart by their qualified names")
@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "averaged"])
def test_a_fault_anywhere_leaves_the_training_alone(plain, tmp_path, averaged):
    calls = called(tmp_path, averaged)
    assert len(calls) > 100
    faults = [(where, n) for where, count in calls for n in sorted({1, count // 2 + 1, count})]
    chosen = faults if ALL else random.Random(averaged).sample(faults, 5)
    for number, (where, n) in enumerate(chosen):
        folder = tmp_path / str(number)
        with warnings.catch_warnings(record=True) as warned, Injector(where, n):
            warnings.simplefilter("always")
            outcome = fit(folder, TrajectoryRecorder(folder / "run.tlog", strict=False), averaged=averaged)
        assert same(outcome, plain[averaged]), where
        told = any("injected into" in str(w.message) for w in warned)
        if not told or [*folder.glob("run.tlog/*.h5")]:  # what only helps, as the facts about a Trainer, may be missing
            with RunLog.open(folder / "run.tlog") as log:
                assert not log.verify().problem, where
                assert told or (log.finished and len(log) == 4), where


def broken(*args, **kwargs):
    raise OSError("no such thing")


@pytest.mark.parametrize("strict", [True, False])
def test_before_the_first_step_is_over_a_strict_recorder_says_so(plain, tmp_path, monkeypatch, strict):
    monkeypatch.setattr("lightning_sgdinf.record.state_reader.StateReader.pack", broken)
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", strict=strict)
    if strict:
        with pytest.raises(UnsupportedRunError, match=r"cannot record \(OSError: no such thing\).*strict=False"):
            fit(tmp_path, recorder)
        assert not recorder.path.exists()
        return
    with pytest.warns(UserWarning, match=r"Nothing is recorded: .*OSError: no such thing.* Training goes on"):
        assert same(fit(tmp_path, recorder), plain[False])
    assert not recorder.recorded


def test_later_recording_stops_and_keeps_what_is_complete(plain, tmp_path, monkeypatch):
    from lightning_sgdinf.record.step_assembler import StepAssembler

    assemble = StepAssembler.assemble

    def failing(self, index, *args):
        return broken() if index == 2 else assemble(self, index, *args)

    monkeypatch.setattr(StepAssembler, "assemble", failing)
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(UserWarning, match=r"Recording stops: .*OSError"):
        assert same(fit(tmp_path, recorder), plain[False])
    with RunLog.open(recorder.path) as log:
        assert len(log) == 2
        assert log.end_reason.startswith("recording stopped: the recorder met something")


def test_a_worker_that_cannot_track_its_batches_says_so_where_it_matters(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_sgdinf.record.example_ids.batch_digest", broken)
    with pytest.raises(SgdInfluenceError, match="in the data loader, OSError: no such thing"):
        fit(tmp_path, TrajectoryRecorder(tmp_path / "a.tlog"))
    with pytest.warns(UserWarning, match="in the data loader, OSError: no such thing"):
        assert same(fit(tmp_path, TrajectoryRecorder(tmp_path / "b.tlog", strict=False)), plain[False])
