"""A small laboratory: runs that watch themselves, to compare what was recorded with what happened.

Nothing here uses the recorder's code. The module notes ids, states and losses by its own hooks, and `redo` takes a
recorded step again with plain torch.
"""

import random
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sgdinf import random_state
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.log.batch_digest import batch_digest

N, FEATURES, CLASSES = 22, 5, 3
ADVICE = (  # of Lightning's, and right to be ignored here
    "You defined a `validation_step` but have no",
    "`training_step` returned `None`",
    "You are using the `dataloader_iter` step flavor",
    "Found `dataloader_iter` argument",
)
OWN = object()  # the module brings its loader


def tensors():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, FEATURES, generator=generator)
    return x, torch.randint(0, CLASSES, (N,), generator=generator), torch.arange(N)


class Examples(Dataset):
    """Examples that know their own index, with augmentation from all three generators."""

    def __init__(self, augment=True):
        self.x, self.y, self.ids = tensors()
        self.augment = augment

    def __len__(self):
        return N

    def __getitem__(self, index):
        x = self.x[index]
        if self.augment:
            x = x + 0.1 * torch.randn(FEATURES) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
        return x, self.y[index], self.ids[index]


class BatchedExamples(Examples):
    """Fetches a batch at once."""

    def __getitems__(self, indices):
        noise = 0.1 * torch.randn(len(indices), FEATURES)
        return [(self.x[i] + n, self.y[i], self.ids[i]) for i, n in zip(indices, noise, strict=True)]


def plain_data():
    """A data set that worker processes of any start method can import."""
    return TensorDataset(*tensors())


def take_down(module, optimizer):
    """An independent copy of all that a step starts from."""
    names = {id(p): n for n, p in module.named_parameters()}
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    return {
        "params": {n: p.detach().clone() for n, p in module.named_parameters() if id(p) in held},
        "buffers": {n: b.detach().clone() for n, b in module.named_buffers()},
        "optimizer": {
            names[id(p)]: {k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)}
            for p, s in optimizer.state.items()
            if s
        },
    }


def make_net(base=pl.LightningModule):
    class Net(base):
        """Notes what happens to it."""

        def __init__(self, optimizer=None, scheduler=None, batch_norm=True, dropout=0.3, act=None):
            super().__init__()
            torch.manual_seed(3)
            norm = [nn.BatchNorm1d(6)] if batch_norm else []
            self.body = nn.Sequential(
                nn.Linear(FEATURES, 6), *norm, nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, CLASSES)
            )
            self.make_optimizer = optimizer or (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
            self.make_scheduler = scheduler
            self.act = act
            self.calls, self.losses, self.done, self.seen_lrs = [], [], [], []
            self.noting = True

        def compute(self, batch):
            x, y, _ = batch
            return F.cross_entropy(self.body(x.to(self.body[0].weight.dtype)), y)

        def training_step(self, batch, batch_idx):
            if self.noting:
                self.note(batch, batch_idx)
            loss = self.compute(batch)
            if self.noting:
                self.losses.append(loss.item())
                self.log("loss", loss, on_step=True, on_epoch=True, batch_size=6)
            return loss if self.act is None else self.act(self, loss, batch_idx)

        def note(self, batch, batch_idx):
            ids = batch[2].reshape(-1).tolist()
            self.calls.append((ids, batch_idx, take_down(self, self.trainer.optimizers[0])))

        def on_before_zero_grad(self, optimizer):
            self.calls = self.calls[-1:]

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.compute(batch), batch_size=6)

        def watch(self, optimizer):
            self.depth = 0  # the step of a derived optimizer may call that of its base

            def pre(opt, args, kwargs):
                self.depth += 1
                if self.depth == 1:
                    self.seen_lrs.append([g["lr"] for g in opt.param_groups])

            def post(opt, args, kwargs):
                self.depth -= 1
                if self.depth == 0 and any(p.grad is not None for g in opt.param_groups for p in g["params"]):
                    self.done.append((self.calls, take_down(self, opt), self.seen_lrs.pop()))
                    self.calls = []

            optimizer.register_step_pre_hook(pre)
            optimizer.register_step_post_hook(post)

        def configure_optimizers(self):
            optimizer = self.make_optimizer(self.parameters())
            self.watch(optimizer)
            if self.make_scheduler is None:
                return optimizer
            return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer, self)}

    return Net


Net = make_net()


def loader(dataset=None, batch_size=6, **kwargs):
    kwargs.setdefault("shuffle", "sampler" not in kwargs and "batch_sampler" not in kwargs)
    if "batch_sampler" in kwargs:
        kwargs.pop("shuffle")
        return DataLoader(dataset or Examples(), **kwargs)
    return DataLoader(dataset or Examples(), batch_size, **kwargs)


@dataclass
class Run:
    net: object
    trainer: object
    weights: dict
    random: dict
    metrics: dict
    error: BaseException | None = None


def seed():
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)


def train(net=None, data=None, *, callbacks=(), host=pl, val=None, trainer=None, error=None, epochs=2, **kwargs):
    """One fit; `error` is the exception type that it must end in."""
    net = net or Net()
    seed()
    if trainer is None:
        kwargs.setdefault("enable_checkpointing", False)
        kwargs.setdefault("max_epochs", epochs)
        trainer = host.Trainer(
            callbacks=list(callbacks),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            num_sanity_val_steps=0,
            **kwargs,
        )
    raised = None
    with warnings.catch_warnings(), pytest.raises(error) if error else nullcontext() as info:
        for advice in ADVICE:
            warnings.filterwarnings("ignore", advice)
        trainer.fit(net, None if data is OWN else data if data is not None else loader(), val)
    if error:
        raised = info.value
    weights = {n: v.clone() for n, v in net.state_dict().items()}
    return Run(
        net,
        trainer,
        weights,
        random_state.capture(),
        {k: v.item() for k, v in trainer.callback_metrics.items()},
        raised,
    )


def same(a, b):
    """Bitwise equality of nested dicts of tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def as_dicts(state):
    return {
        "params": dict(state.params),
        "buffers": dict(state.buffers),
        "optimizer": {n: dict(s) for n, s in state.optimizer.items()},
    }


def assert_untouched(plain, recorded):
    """The run with the recorder is bit for bit the run without it."""
    assert plain.net is not recorded.net
    assert same(plain.weights, recorded.weights)
    assert plain.random == recorded.random
    assert plain.metrics == recorded.metrics
    assert plain.net.losses == recorded.net.losses
    strategy, plugin = recorded.trainer.strategy, recorded.trainer.precision_plugin
    assert not {"process_dataloader", "training_step"} & vars(strategy).keys()
    assert not {"convert_input", "clip_gradients"} & vars(plugin).keys()


def assert_faithful(path, net, *, ids=True, batch_idx=True):
    """The log says what the module saw: ids, states before and after, learning rates."""
    done = net.done
    assert done, "the test is degenerate: no step was taken"
    with RunLog.open(path) as log:
        assert len(log) == len(done)
        for t, (calls, after, lrs) in enumerate(done):
            step = log.step(t)
            assert step.index == t
            assert list(step.learning_rates) == lrs
            if batch_idx:
                assert [m.batch_idx for m in step.micro_batches] == [c[1] for c in calls]
            if ids:
                assert [m.example_ids.tolist() for m in step.micro_batches] == [c[0] for c in calls]
            assert same(as_dicts(log.state(t)), calls[0][2])
            following = as_dicts(log.state(t + 1))
            following["params"] = {n: v for n, v in following["params"].items() if n in after["params"]}  # some join
            assert same(following, after) or log.step(t + 1).changed
        assert log.finished


def redo(log, index, net, dataset, optimizer, plugin, *, transfer=lambda batch: batch):
    """State ``index + 1``, computed from the record with plain torch, and the digests (recorded, computed)."""
    step, state = log.step(index), log.state(index)
    net.noting = False
    net.__dict__["_trainer"] = None
    for module in net.modules():
        module.training = True
    for name in step.eval_modules:
        net.get_submodule(name).training = False
    put_back(net, optimizer, state, step)
    digests = []
    for micro in step.micro_batches:
        (draw,) = micro.draws
        random_state.restore(draw.random)
        ids = draw.example_ids.tolist()
        if draw.single:
            batch = torch.utils.data.default_convert(dataset[ids[0]])
        else:
            fetch = getattr(dataset, "__getitems__", None)
            batch = torch.utils.data.default_collate(fetch(ids) if fetch else [dataset[i] for i in ids])
        digests.append((draw.digest, batch_digest(batch)))
        random_state.restore(micro.transferred_with)
        batch = transfer(plugin.convert_input(batch))
        random_state.restore(micro.stepped_with)
        with plugin.train_step_context():
            loss = net.training_step(batch, micro.batch_idx)
        if loss is not None:
            (loss / step.accumulation).backward()
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    if step.clip is not None and step.clip.algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, step.clip.value)
    elif step.clip is not None:
        torch.nn.utils.clip_grad_value_(parameters, step.clip.value)
    optimizer.step()
    return take_down(net, optimizer), digests


def put_back(net, optimizer, state, step):
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    with torch.no_grad():
        for name, value in state.params.items():
            parameters[name].copy_(value)
            parameters[name].grad = None
        for name, value in state.buffers.items():
            buffers[name].copy_(value)
    optimizer.state.clear()
    for name, entries in state.optimizer.items():
        optimizer.state[parameters[name]] = {k: v.clone() for k, v in entries.items()}
    for group, recorded in zip(optimizer.param_groups, step.groups, strict=True):
        assert [parameters[n] is p for n, p in zip(recorded.params, group["params"], strict=True)]
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in recorded.options.items()})


@pytest.fixture
def lab():
    """This module."""
    return sys.modules[__name__]


@dataclass
class Case:
    """A way to train.

    Attributes:
        data: Makes the loader.
        net: Makes the module.
        options: Of `train`, made anew for each run.
        recorder: Arguments of the recorder.
        ids: Whether the batches hold ids in the order of the draws.
        batch_idx: Whether the hooks know the index of the batch.
        compared: Whether the run is done without the recorder, too, and must be the same.
        redone: Whether each step is re-run from the record.
        dataset: What the ids index.
        unreplayable: Part of the reason in the header.
    """

    data: object = loader
    net: object = Net
    options: object = dict
    recorder: dict = field(default_factory=dict)
    ids: bool = True
    batch_idx: bool = True
    compared: bool = True
    redone: bool = True
    dataset: object = Examples
    unreplayable: str = ""
