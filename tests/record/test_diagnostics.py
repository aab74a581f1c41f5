"""Runs that cannot be replayed: refused at once, or, when told so, recorded as far as that goes, and marked."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record import TrajectoryRecorder


class Stream(IterableDataset):
    def __init__(self, lab):
        self.base = lab.Examples()

    def __iter__(self):
        return (self.base[i] for i in range(12))


class Batches:
    def __init__(self, lab):
        self.batches = list(lab.loader(lab.Examples(augment=False), shuffle=False))

    def __iter__(self):
        return iter(self.batches)


class NamedExamples(torch.utils.data.Dataset):
    def __init__(self, lab):
        self.base = lab.Examples()

    def __len__(self):
        return 22

    def __getitem__(self, name):
        return self.base[int(name)]


class ListedExamples(NamedExamples):
    def __getitem__(self, indices):
        return torch.utils.data.default_collate([self.base[i] for i in indices])


class OwnIteration(DataLoader):
    def __iter__(self):
        for x, y, ids in super().__iter__():
            yield 2 * x, y, ids


def names():
    return [str(i) for i in range(22)]


def manual_net(lab, steps=1):
    class ManualNet(lab.Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.note(batch, batch_idx)
            optimizer = self.optimizers()
            for _ in range(steps):
                loss = self.compute(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            self.losses.append(loss.item())

    return ManualNet()


def two_optimizers_net(lab):
    class TwoOptimizersNet(manual_net(lab).__class__):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                loss = self.compute(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.body[0].parameters(), 0.1), torch.optim.SGD(self.body[4].parameters(), 0.1)]

    return TwoOptimizersNet()


class TwoLooks(torch.optim.SGD):
    """Evaluates the loss twice per step."""

    def step(self, closure):
        closure()
        return super().step(closure)


class Counting(torch.optim.SGD):
    """Keeps something that is neither tensor nor number."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["history"] = [1, 2]
        return loss


def foreign_parameter(parameters):
    return torch.optim.SGD([*parameters, torch.nn.Parameter(torch.zeros(2))], 0.1)


# name: (loader, module, what the reason says, whether ids are right)
CASES = {
    "iterable data set": (
        lambda lab: DataLoader(Stream(lab), 4),
        lambda lab: lab.Net(),
        "Stream is an IterableDataset",
        False,
    ),
    "no DataLoader": (Batches, lambda lab: lab.Net(), "not a DataLoader", False),
    "ids that are names": (
        lambda lab: DataLoader(NamedExamples(lab), 4, sampler=names()),
        lambda lab: lab.Net(),
        "indices that are not integers",
        False,
    ),
    "tuples of ids": (
        lambda lab: DataLoader(ListedExamples(lab), batch_size=None, sampler=[(1, 2, 3), (4, 5, 6)]),
        lambda lab: lab.Net(),
        "batch_sampler",
        True,
    ),
    "own iteration": (lambda lab: OwnIteration(lab.Examples(), 4), lambda lab: lab.Net(), "its own __iter__", True),
    "manual optimization": (lambda lab: lab.loader(), manual_net, "optimizes manually", True),
    "LBFGS": (
        lambda lab: lab.loader(),
        lambda lab: lab.Net(lambda p: torch.optim.LBFGS(p, max_iter=2)),
        "several times per step",
        False,
    ),
    "a closure called twice": (
        lambda lab: lab.loader(),
        lambda lab: lab.Net(lambda p: TwoLooks(p, 0.1)),
        "several times per step",
        False,
    ),
    "a parameter from elsewhere": (
        lambda lab: lab.loader(),
        lambda lab: lab.Net(foreign_parameter),
        "1 parameters that are none",
        True,
    ),
    "optimizer state of another kind": (
        lambda lab: lab.loader(),
        lambda lab: lab.Net(lambda p: Counting(p, 0.1)),
        "keeps history",
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_before_the_first_step_is_complete(lab, name, tmp_path):
    loader, net, reason, _ = CASES[name]
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    run = lab.train(net(lab), loader(lab), callbacks=[recorder], error=UnsupportedRunError)
    assert reason in str(run.error)
    assert "strict=False" in str(run.error)
    assert not recorder.path.exists()
    assert len(run.net.done) <= 1


@pytest.mark.parametrize("name", CASES)
def test_recorded_and_marked_when_told_so(lab, name, tmp_path):
    loader, net, reason, ids = CASES[name]
    plain = lab.train(net(lab), loader(lab))
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", strict=False)
    with pytest.warns(UserWarning, match="cannot be replayed") as warned:
        recorded = lab.train(net(lab), loader(lab), callbacks=[recorder])
    told = [str(w.message) for w in warned if "cannot be replayed" in str(w.message)]
    assert len(told) == len(set(told))
    lab.assert_untouched(plain, recorded)
    with RunLog.open(recorder.path) as log:
        assert reason in log.header.replayable
        assert len(log) == len(recorded.net.done)
        for t, (calls, after, _) in enumerate(recorded.net.done):
            assert lab.same(dict(log.state(t + 1).params), after["params"])
            if ids:
                assert [m.example_ids.tolist() for m in log.step(t).micro_batches] == [c[0] for c in calls]


def test_several_manual_steps_per_batch(lab, tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", strict=False)
    with pytest.warns(UserWarning, match="optimizes manually"):
        run = lab.train(manual_net(lab, steps=2), callbacks=[recorder], epochs=1)
    with RunLog.open(recorder.path) as log:
        assert len(log) == len(run.net.done) == 8
        batches = [calls[0] for calls, _, _ in run.net.done if calls]
        for t in range(8):
            assert log.step(t).example_ids.tolist() == batches[t // 2][0]
            assert lab.same(dict(log.state(t + 1).params), run.net.done[t][1]["params"])


@pytest.mark.parametrize("strict", [True, False])
def test_several_optimizers(lab, tmp_path, strict):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", strict=strict)
    if strict:
        lab.train(two_optimizers_net(lab), callbacks=[recorder], error=UnsupportedRunError)
    else:
        plain = lab.train(two_optimizers_net(lab))
        with pytest.warns(UserWarning, match="Nothing is recorded: the run has 2 optimizers"):
            recorded = lab.train(two_optimizers_net(lab), callbacks=[recorder])
        lab.assert_untouched(plain, recorded)
    assert not recorder.path.exists()


@pytest.mark.parametrize("strict", [True, False])
def test_several_processes(lab, tmp_path, strict, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", property(lambda self: 2))
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", strict=strict)
    trainer = lab.pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[recorder])
    if strict:
        with pytest.raises(UnsupportedRunError, match="2 processes"):
            recorder.setup(trainer, lab.Net(), "fit")
    else:
        with pytest.warns(UserWarning, match="2 processes"):
            recorder.setup(trainer, lab.Net(), "fit")
        assert "process_dataloader" not in vars(trainer.strategy)


@pytest.mark.parametrize("what", ["loss", "parameter"])
def test_what_is_not_finite_is_named_and_training_goes_on(lab, tmp_path, what):
    def spoil(net, loss, batch_idx):
        if len(net.done) != 3:
            return loss
        if what == "loss":
            return loss * float("nan")
        net.body[4].bias.data[0] = float("inf")  # the loss was computed before
        return loss

    def go(*callbacks):
        return lab.train(lab.Net(act=spoil), callbacks=callbacks)

    plain = go()
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(UserWarning, match=r"not finite after step 3 \(epoch 0\)"):
        recorded = go(recorder)
    assert len(plain.net.done) == len(recorded.net.done) == 8
    with RunLog.open(recorder.path) as log:
        assert len(log) == 8
        assert "not finite after step 3" in log.end_reason
        assert not log.verify().problem
        after = recorded.net.done[-1][1]["params"]
        assert all(torch.equal(v.view(torch.int32), after[n].view(torch.int32)) for n, v in log.state(8).params.items())
        assert [log.step(t).changed for t in range(8)] == [()] * 8  # NaN is equal to itself here


def test_weights_edited_between_steps_are_named(lab, tmp_path):
    class ClampedNet(lab.Net):
        def on_train_batch_end(self, *args):
            if self.global_step == 2:
                self.body[0].weight.data.clamp_(-0.01, 0.01)
            if self.global_step == 4:
                self.body[1].running_mean.zero_()
                self.trainer.optimizers[0].state[self.body[4].bias]["momentum_buffer"].mul_(2.0)

    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(UserWarning, match=r"changed body\.0\.weight before step 2 .* no replay goes back") as warned:
        run = lab.train(ClampedNet(), callbacks=[recorder], epochs=2)
    assert len([w for w in warned if "About the record" in str(w.message)]) == 1
    lab.assert_faithful(recorder.path, run.net)
    with RunLog.open(recorder.path) as log:
        changed = {t: log.step(t).changed for t in range(len(log)) if log.step(t).changed}
    assert changed == {
        2: ("param body.0.weight",),
        4: ("buffer body.1.running_mean", "optimizer body.4.bias [momentum_buffer]"),
    }


@pytest.mark.filterwarnings("ignore:About the record of this run")
def test_weights_edited_around_batches_that_lead_to_no_step(lab, tmp_path):
    def skip(net, loss, batch_idx):
        if batch_idx in (1, 2):
            if batch_idx == 1:
                net.body[0].weight.data[0, 0] += 1
            return None
        return loss

    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    run = lab.train(lab.Net(act=skip), callbacks=[recorder], epochs=2)
    lab.assert_faithful(recorder.path, run.net)
    with RunLog.open(recorder.path) as log:
        assert [m.batch_idx for step in log.steps(0, 4) for m in step.micro_batches] == [0, 3, 0, 3]
        moved = ("running_mean", "running_var", "num_batches_tracked")  # by the forward passes of those batches
        edited = ("param body.0.weight", *(f"buffer body.1.{name}" for name in moved))
        assert [step.changed for step in log.steps(0, 4)] == [(), edited, (), edited]


@pytest.mark.filterwarnings("ignore:About the record of this run")
def test_a_post_hook_of_the_user_counts_as_something_else(lab, tmp_path):
    class HookedNet(lab.Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *a: self.body[0].bias.data.mul_(0.5))
            return optimizer

    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(UserWarning, match=r"changed param body\.0\.bias after the last step"):
        lab.train(HookedNet(), callbacks=[recorder], epochs=1)
    with RunLog.open(recorder.path) as log:
        assert log.header.extra["optimizer_hooks"] == 2
        assert all(log.step(t).changed == ("param body.0.bias",) for t in range(1, 4))


def test_constants_that_move_are_told(lab, tmp_path):
    class TeacherNet(lab.Net):
        def __init__(self):
            super().__init__(optimizer=lambda p: torch.optim.SGD(self.body.parameters(), 0.1))
            self.teacher = torch.nn.Linear(2, 2)

        def on_train_batch_end(self, *args):
            if self.current_epoch == 1:
                self.teacher.weight.data.mul_(0.9)

    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with pytest.warns(
        UserWarning, match=r"teacher\.weight changed in training before step 5 although no optimizer holds it"
    ):
        lab.train(TeacherNet(), callbacks=[recorder], epochs=3)
    with RunLog.open(recorder.path) as log:
        assert log.header.constant_digest != 0
        assert [name for name, _, _ in log.header.parameters if "teacher" in name] == []
        assert "teacher.weight changed" in log.end_reason


def test_a_log_on_a_network_file_system_is_advised_against(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_sgdinf.record.compatibility.network_file_system", lambda path: "nfs4 at /home")
    with pytest.warns(UserWarning, match=r"on a network file system \(nfs4 at /home\).* Record to a local disk"):
        lab.train(callbacks=[TrajectoryRecorder(tmp_path / "run.tlog")])
    with RunLog.open(tmp_path / "run.tlog") as log:
        assert not log.header.replayable
        assert "network file system" in log.header.extra["remarks"][0]
