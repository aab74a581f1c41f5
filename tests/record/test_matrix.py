"""Every way to feed, step and average that the Trainer offers: recorded rightly, and nothing of the run changed."""

import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, WeightedRandomSampler

from lightning_sgdinf.log import RunLog
from lightning_sgdinf.record import TrajectoryRecorder


class ReversedBatches(BatchSampler):
    def __iter__(self):
        yield from [batch[::-1] for batch in super().__iter__()]


class Endless:
    """A batch sampler without a length."""

    def __iter__(self):
        order = torch.randperm(22).tolist()
        yield from (order[i : i + 5] for i in range(0, 22, 5))


def of_two(lab, **kwargs):
    return {
        "a": lab.loader(batch_size=6, **kwargs),
        "b": lab.loader(batch_size=4, dataset=lab.BatchedExamples(), **kwargs),
    }


def pair_net(lab):
    class PairNet(lab.Net):
        def compute(self, batch):
            parts = [b for b in (batch.values() if isinstance(batch, dict) else batch) if b is not None]
            return sum(super(PairNet, self).compute(part) for part in parts)

        def note(self, batch, batch_idx):
            parts = [b for b in (batch.values() if isinstance(batch, dict) else batch) if b is not None]
            super().note([None, None, torch.cat([p[2] for p in parts])], batch_idx)

    return PairNet()


def iterator_net(lab):
    class IteratorNet(lab.Net):
        def training_step(self, dataloader_iter):
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    return IteratorNet()


def own_loader_net(lab):
    class OwnLoaderNet(lab.Net):
        def train_dataloader(self):
            return lab.loader(shuffle=True)

    return OwnLoaderNet()


def estimating_net(lab):
    class EstimatingNet(lab.Net):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 8
            return super().configure_optimizers()

    return EstimatingNet()


def frozen_net(lab):
    net = lab.Net(optimizer=lambda p: torch.optim.Adam([q for q in p if q.requires_grad], 0.01))
    net.body[0].weight.requires_grad_(False)
    return net


def eval_norm_net(lab):
    class EvalNormNet(lab.Net):
        def on_train_epoch_start(self):
            self.body[1].eval()

    return EvalNormNet()


def own_clipping_net(lab):
    class OwnClippingNet(lab.Net):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            if self.current_epoch == 1:
                self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")

    return OwnClippingNet()


def late_lr_net(lab):
    class LateRateNet(lab.Net):
        """Sets its learning rate after the optimizer's step has begun."""

        def on_before_optimizer_step(self, optimizer):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + self.global_step)
            self.seen_lrs[-1] = [optimizer.param_groups[0]["lr"]]

    return LateRateNet()


def transfer_net(lab):
    class TransferNet(lab.Net):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y, ids = batch
            return x + 0.1 * torch.randn_like(x), y, ids

    return TransferNet()


def two_groups(parameters):
    first, *rest = parameters
    return torch.optim.SGD(
        [{"params": rest, "lr": 0.02}, {"params": [first], "weight_decay": 0.1}], 0.1, nesterov=True, momentum=0.5
    )


def skip_one(net, loss, batch_idx):
    return None if batch_idx == 1 else loss


def overflow_one(net, loss, batch_idx):
    return loss * float("inf") if batch_idx == 1 else loss


def as_dict(net, loss, batch_idx):
    return {"loss": loss, "more": batch_idx}


def ema():
    return WeightAveraging(avg_fn=get_ema_avg_fn(0.8))


def freezing_net(lab):
    class FreezingNet(lab.Net):
        def __init__(self):
            super().__init__()
            self.backbone = self.body[0]

        def configure_optimizers(self):
            optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)
            self.watch(optimizer)
            return optimizer

    return FreezingNet()


def epoch_scheduler(optimizer, net):
    return {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "epoch"}


def step_scheduler(optimizer, net):
    return {"scheduler": CosineAnnealingLR(optimizer, 8), "interval": "step"}


def plateau_scheduler(optimizer, net):
    return {"scheduler": ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0), "monitor": "val_loss"}


def adamw(parameters):
    return torch.optim.AdamW(parameters, 0.01)


def half_precision():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]}


def weighted():
    return WeightedRandomSampler(torch.arange(1.0, 23.0), 20)


class Scalars(torch.utils.data.Dataset):
    """Whole batches as items; their index is told by all their ids."""

    def __init__(self, lab):
        self.base = lab.Examples()

    def __len__(self):
        return 6

    def __getitem__(self, index):
        parts = [self.base[(3 * index + k) % 22] for k in range(3)]
        x, y, _ = (torch.stack(v) for v in zip(*parts, strict=True))
        return x, y, torch.tensor([index])


class Relative(torch.utils.data.Dataset):
    def __init__(self, lab):
        self.base = lab.Examples()

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return self.base[index]


CASES = {
    "main process": lambda lab: lab.Case(),
    "workers, fork": lambda lab: lab.Case(lambda: lab.loader(num_workers=2)),
    "in any order": lambda lab: lab.Case(lambda: lab.loader(num_workers=2, in_order=False), compared=False),
    "workers, spawn": lambda lab: lab.Case(
        lambda: lab.loader(lab.plain_data(), num_workers=1, multiprocessing_context="spawn", persistent_workers=True),
        compared=False,  # starting such a worker takes seconds
        dataset=lab.plain_data,
    ),
    "persistent workers, weights, prefetch": lambda lab: lab.Case(
        lambda: lab.loader(sampler=weighted(), num_workers=2, persistent_workers=True, prefetch_factor=4)
    ),
    "own batch sampler": lambda lab: lab.Case(
        lambda: lab.loader(batch_sampler=ReversedBatches(RandomSampler(range(22)), 6, False))
    ),
    "batch sampler without length": lambda lab: lab.Case(lambda: lab.loader(batch_sampler=Endless())),
    "batch sampler without length, cut": lambda lab: lab.Case(
        lambda: lab.loader(batch_sampler=Endless()), options=lambda: {"limit_train_batches": 3}
    ),
    "drop_last": lambda lab: lab.Case(lambda: lab.loader(drop_last=True)),
    "__getitems__": lambda lab: lab.Case(lambda: lab.loader(lab.BatchedExamples()), dataset=lab.BatchedExamples),
    "__getitems__, workers": lambda lab: lab.Case(
        lambda: lab.loader(lab.BatchedExamples(), num_workers=1), dataset=lab.BatchedExamples
    ),
    "batch_size=None": lambda lab: lab.Case(
        lambda: DataLoader(Scalars(lab), batch_size=None, shuffle=True), dataset=lambda: Scalars(lab)
    ),
    "Subset": lambda lab: lab.Case(
        lambda: lab.loader(Subset(Relative(lab), range(5, 20))),
        dataset=lambda: Subset(Relative(lab), range(5, 20)),
        ids=False,
    ),
    "reloaded every epoch": lambda lab: lab.Case(
        lambda: lab.OWN, lambda: own_loader_net(lab), lambda: {"reload_dataloaders_every_n_epochs": 1, "epochs": 3}
    ),
    "limit_train_batches": lambda lab: lab.Case(options=lambda: {"limit_train_batches": 2}),
    "overfit_batches": lambda lab: lab.Case(lambda: lab.loader(shuffle=False), options=lambda: {"overfit_batches": 2}),
    "dict of loaders": lambda lab: lab.Case(lambda: of_two(lab), lambda: pair_net(lab), redone=False),
    "CombinedLoader, min_size": lambda lab: lab.Case(
        lambda: CombinedLoader(of_two(lab), "min_size"), lambda: pair_net(lab), redone=False
    ),
    "CombinedLoader, max_size, workers": lambda lab: lab.Case(
        lambda: CombinedLoader(list(of_two(lab, num_workers=1).values()), "max_size"),
        lambda: pair_net(lab),
        redone=False,
    ),
    "CombinedLoader of one": lambda lab: lab.Case(
        lambda: CombinedLoader({"only": lab.loader()}), lambda: pair_net(lab), redone=False
    ),
    "dataloader_iter": lambda lab: lab.Case(
        net=lambda: iterator_net(lab),
        recorder={"strict": False},
        redone=False,
        batch_idx=False,
        unreplayable="dataloader_iter",
    ),
    "dataloader_iter, workers": lambda lab: lab.Case(
        lambda: lab.loader(num_workers=1, persistent_workers=True),
        net=lambda: iterator_net(lab),
        recorder={"strict": False},
        redone=False,
        batch_idx=False,
        unreplayable="dataloader_iter",
    ),
    "accumulation, short last group": lambda lab: lab.Case(options=lambda: {"accumulate_grad_batches": 3}),
    "accumulation by epoch": lambda lab: lab.Case(
        options=lambda: {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})], "epochs": 3}
    ),
    "accumulation, one step skipped": lambda lab: lab.Case(
        net=lambda: lab.Net(act=skip_one), options=lambda: {"accumulate_grad_batches": 2}
    ),
    "step skipped": lambda lab: lab.Case(net=lambda: lab.Net(act=skip_one)),
    "loss in a dict": lambda lab: lab.Case(net=lambda: lab.Net(act=as_dict), redone=False),
    "clipping by norm": lambda lab: lab.Case(options=lambda: {"gradient_clip_val": 0.1}),
    "clipping by value": lambda lab: lab.Case(
        options=lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    ),
    "own clipping": lambda lab: lab.Case(net=lambda: own_clipping_net(lab)),
    "scheduler per step": lambda lab: lab.Case(net=lambda: lab.Net(adamw, step_scheduler)),
    "scheduler per epoch": lambda lab: lab.Case(net=lambda: lab.Net(scheduler=epoch_scheduler)),
    "plateau scheduler": lambda lab: lab.Case(
        net=lambda: lab.Net(scheduler=plateau_scheduler),
        options=lambda: {"val": lab.loader(shuffle=False), "epochs": 3},
    ),
    "learning rate set in the step": lambda lab: lab.Case(net=lambda: late_lr_net(lab)),
    "AdamW": lambda lab: lab.Case(net=lambda: lab.Net(adamw)),
    "AMSGrad": lambda lab: lab.Case(net=lambda: lab.Net(lambda p: torch.optim.Adam(p, 0.01, amsgrad=True))),
    "RMSprop": lambda lab: lab.Case(
        net=lambda: lab.Net(lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True))
    ),
    "param groups": lambda lab: lab.Case(net=lambda: lab.Net(two_groups)),
    "frozen parameters": lambda lab: lab.Case(net=lambda: frozen_net(lab)),
    "batch norm in eval mode": lambda lab: lab.Case(net=lambda: eval_norm_net(lab)),
    "batch-transfer hook": lambda lab: lab.Case(net=lambda: transfer_net(lab)),
    "unfreezing": lambda lab: lab.Case(
        net=lambda: freezing_net(lab),
        options=lambda: {
            "callbacks": [
                BackboneFinetuning(
                    1, lambda epoch: 1.0, backbone_initial_ratio_lr=1.0, should_align=False, train_bn=False
                )
            ]
        },
        redone=False,
    ),
    "bf16-mixed": lambda lab: lab.Case(options=lambda: {"precision": "bf16-mixed"}),
    "64-true": lambda lab: lab.Case(options=lambda: {"precision": "64-true"}),
    "16-mixed with overflow": lambda lab: lab.Case(
        net=lambda: lab.Net(act=overflow_one, dropout=0.0), options=half_precision, redone=False
    ),
    "16-mixed": lambda lab: lab.Case(options=half_precision, redone=False),
    "EMA": lambda lab: lab.Case(options=lambda: {"callbacks": [ema()], "val": lab.loader(shuffle=False)}),
    "SWA with batch norm": lambda lab: lab.Case(
        options=lambda: {
            "callbacks": [StochasticWeightAveraging(0.05, swa_epoch_start=1)],
            "epochs": 4,
            "val": lab.loader(shuffle=False),
        }
    ),
    "SWA without batch norm": lambda lab: lab.Case(
        net=lambda: lab.Net(batch_norm=False),
        options=lambda: {"callbacks": [StochasticWeightAveraging(0.05, swa_epoch_start=1)], "epochs": 4},
    ),
    "estimated_stepping_batches": lambda lab: lab.Case(net=lambda: estimating_net(lab)),
    "validation inside epochs": lambda lab: lab.Case(
        options=lambda: {"val": lab.loader(shuffle=False), "val_check_interval": 2}
    ),
    "max_steps": lambda lab: lab.Case(options=lambda: {"max_steps": 3, "max_epochs": -1}),
    "pytorch_lightning": lambda lab: lab.Case(
        net=lambda: lab.make_net(pytorch_lightning.LightningModule)(), options=lambda: {"host": pytorch_lightning}
    ),
}


def run(lab, case, recorder=None):
    options = case.options()
    callbacks = [*options.pop("callbacks", []), *([recorder] if recorder else [])]
    return lab.train(case.net(), case.data(), callbacks=callbacks, **options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The run is recorded, but cannot be replayed")
def test_recorded_as_it_happened(lab, name, tmp_path):
    case = CASES[name](lab)
    path = tmp_path / "run.tlog"
    plain = run(lab, case) if case.compared else None
    recorder = TrajectoryRecorder(path, **case.recorder)
    recorded = run(lab, case, recorder)
    if plain is not None:
        lab.assert_untouched(plain, recorded)
    assert recorder.path == path
    lab.assert_faithful(path, recorded.net, ids=case.ids, batch_idx=case.batch_idx)
    with RunLog.open(path) as log:
        assert log.end_reason == "completed"
        assert not log.verify().problem
        assert case.unreplayable in log.header.replayable
        assert bool(case.unreplayable) == bool(log.header.replayable)
        if case.redone:
            assert_redone(lab, log, case, recorded.trainer.precision_plugin)


def assert_redone(lab, log, case, plugin):
    """Every step, taken again from the record alone, leads to the next recorded state, bit for bit."""
    net = case.net()
    with plugin.module_init_context():
        net = case.net()
    plugin.convert_module(net)
    optimizer = net.make_optimizer(net.parameters())
    for t in range(len(log)):
        redone, digests = lab.redo(
            log, t, net, case.dataset(), optimizer, plugin, transfer=lambda b: net.on_after_batch_transfer(b, 0)
        )
        assert all(recorded == again for recorded, again in digests)
        following = log.state(t + 1)
        changed = log.step(t + 1).changed if t + 1 < len(log) else ()
        assert lab.same(redone["params"], dict(following.params)), f"step {t}"
        for name, value in following.buffers.items():
            assert f"buffer {name}" in changed or lab.same(redone["buffers"][name], value), f"step {t}: {name}"
