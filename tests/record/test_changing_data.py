"""Training data that change under way: one id is one example, or the run says that it is not."""

import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import DataMismatchError, ResumeError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record.example_numbers import ExampleNumbers, data_fingerprint, row_digests

RATE, BATCH = 0.3, 2
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 3, generator=G, dtype=torch.float64), torch.arange(12) % 3
X[9] = X[8]  # two equal examples
Y[9] = Y[8]
VALID = TensorDataset(torch.randn(6, 3, generator=G, dtype=torch.float64), torch.arange(6) % 3)


class Net(pl.LightningModule):
    def __init__(self, loaders, epochs=3):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 3).double()  # as a checkpoint restores it before the Trainer converts it
        self.loaders = loaders

    def train_dataloader(self):
        return self.loaders(self.current_epoch)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), RATE)


class Curriculum(Dataset):
    """Chooses its examples anew each epoch, in place."""

    def __init__(self):
        self.chosen = torch.arange(4)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[self.chosen[index]], Y[self.chosen[index]]


def subset(members):
    return DataLoader(Subset(TensorDataset(X, Y), members), BATCH)


def in_place(data):
    def loaders(epoch):
        data.chosen = torch.arange(4 * epoch, 4 * epoch + 4)
        return DataLoader(data, BATCH)

    return loaders


# The examples of each epoch.
EPOCHS = {
    "other data each epoch": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
    "data that come back": [[0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 2, 3]],
    "chosen in place": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
    "made anew and the same": [[0, 1, 2, 3]] * 3,
    "equal examples": [[8, 9, 0, 1], [8, 9, 2, 3], [8, 9, 0, 1]],
}


def loaders_of(name):
    return in_place(Curriculum()) if name == "chosen in place" else lambda epoch: subset(EPOCHS[name][epoch])


def fit(net, *callbacks, epochs=3, ckpt=None):
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="64-true",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        reload_dataloaders_every_n_epochs=1,
        callbacks=list(callbacks),
    )
    trainer.fit(net, ckpt_path=ckpt)
    return net.layer.weight.detach().clone()


def by_hand(epochs):
    """Return minus the derivative of the validation loss in the weight of each of the 12 examples."""
    layer = Net(None).layer.double()
    w, b = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    weights = torch.ones(12, dtype=torch.float64, requires_grad=True)
    for members in epochs:
        members = list(members)
        for ids in (members[:2], members[2:]):
            losses = F.cross_entropy(X[ids] @ w.T + b, Y[ids], reduction="none")
            dw, db = torch.autograd.grad((losses * weights[ids]).mean(), (w, b), create_graph=True)
            w, b = w - RATE * dw, b - RATE * db
    x, y = VALID.tensors
    return -torch.autograd.grad(F.cross_entropy(x @ w.T + b, y), weights)[0]


@pytest.mark.parametrize("name", EPOCHS)
@pytest.mark.filterwarnings("ignore:About the record")
def test_each_example_has_its_own_score(name, tmp_path):
    epochs = EPOCHS[name]
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", store_batches=True)
    trained = fit(Net(loaders_of(name)), recorder)
    assert torch.equal(trained, fit(Net(loaders_of(name))))
    scores = InfluenceRunner(progress=False, certificate="off").run(
        Net(None), None, DataLoader(VALID, 6), log=recorder.path
    )
    with RunLog.open(recorder.path) as log:
        ids = [i for step in log.steps(0, len(log)) for i in step.example_ids.tolist()]
    members = [i for members in epochs for i in members]
    assert len(set(zip(ids, members, strict=True))) == len(set(ids)) == len(set(members))  # one to one
    expected, values = by_hand(epochs), scores.values[:, 0]
    for number, member in zip(ids, members, strict=True):
        assert values[number].item() == pytest.approx(expected[member].item(), rel=1e-9, abs=1e-14)


def test_without_the_batches_the_change_is_told_and_refused(tmp_path):
    name = "other data each epoch"
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trained = fit(Net(loaders_of(name)), recorder)
    told = [str(w.message) for w in warned if "are others from epoch" in str(w.message)]
    assert len(told) == 2  # the second and the third
    assert "store_batches=True" in told[0]
    assert torch.equal(trained, fit(Net(loaders_of(name))))
    with pytest.raises(DataMismatchError, match="store_batches=True"):
        InfluenceRunner(progress=False).run(Net(None), subset([0, 1, 2, 3]), DataLoader(VALID, 6), log=recorder.path)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_fit_is_not_resumed_with_other_data(tmp_path, stored):
    def go(members, recorder, epochs, ckpt=None):
        saver = ModelCheckpoint(tmp_path, filename="at", save_last=False)
        return fit(Net(lambda epoch: subset(members)), recorder, saver, epochs=epochs, ckpt=ckpt)

    def recorder(name="run", **how):
        return TrajectoryRecorder(tmp_path / f"{name}.tlog", store_batches=stored, **how)

    go([0, 1, 2, 3], recorder(), 1)
    checkpoint = (tmp_path / "at.ckpt").rename(tmp_path / "first.ckpt")  # later fits save theirs
    with pytest.raises(ResumeError, match="the training data are others than its run began with"):
        go([4, 5, 6, 7], recorder(), 2, checkpoint)
    own = recorder("own", resume="never")  # as the message says
    go([4, 5, 6, 7], own, 2, checkpoint)
    with RunLog.open(own.path) as log:
        assert len(log) == 2
    go([0, 1, 2, 3], recorder(), 2, checkpoint)  # the same data
    with RunLog.open(tmp_path / "run.tlog") as log:
        assert len(log) == 4


class Counting(Dataset):
    def __init__(self, values, generator=None):
        self.values, self.calls, self.cache, self.rng = values, 0, {}, generator or np.random.default_rng(0)


def test_what_counts_as_the_data():
    one = Counting([1, 2, 3])
    before = data_fingerprint(one)
    one.calls, one.cache[4] = 7, "kept"
    one.rng.random()
    assert data_fingerprint(one) == before == data_fingerprint(Counting([1, 2, 3]))
    assert (
        len({data_fingerprint(Counting(v)) for v in ([1, 2, 3], [1, 2, 4], torch.arange(3), np.arange(3.0), ["a"])})
        == 5
    )
    assert data_fingerprint(Subset(one, [0, 1])) != data_fingerprint(Subset(one, [0, 2]))
    assert data_fingerprint(Counting({"a": 1})) is None
    assert data_fingerprint(object()) is None


def test_rows_are_told_apart_by_all_that_a_batch_holds():
    batch = {"x": torch.tensor([[1.0], [1.0], [2.0]]), "y": np.array([1, 1, 1]), "all": torch.zeros(2)}
    one, two, three = row_digests(batch, 3)
    assert one == two != three
    assert row_digests({"x": torch.zeros(2, 2)}, 3) is None


def test_examples_of_other_data_are_numbered_on():
    numbers = ExampleNumbers()
    numbers.begin(10)
    first, other = torch.arange(4.0), torch.tensor([2.0, 7.0, 7.0, 2.0])
    assert numbers.ids(0, [3, 1], first[[3, 1]]).tolist() == [3, 1]
    assert numbers.ids(0, [2, 0], first[[2, 0]]).tolist() == [2, 0]
    assert numbers.ids(1, [0, 1, 2, 3], other).tolist() == [2, 10, 11, 12]  # the second 2.0 is not the first
    assert numbers.ids(1, [3, 0], other[[3, 0]] + 1).tolist() == [12, 2]  # augmented, but the same data
    assert numbers.ids(0, [0], first[[0]] + 5).tolist() == [0]
    assert numbers.ids(2, [0], object()) is None
