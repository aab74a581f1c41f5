"""Runs in which parameters are frozen, freed, or without a gradient on the way: scores against autograd through the run
written out by hand, in float64."""

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import ModelMismatchError, UnsupportedRunError
from lightning_sgdinf.estimators import FinalParameters, LastEpochs
from lightning_sgdinf.log import RunLog

N, BATCH, EPOCHS, LR, MU, DECAY = 8, 4, 3, 0.3, 0.9, 0.01
PER_EPOCH = N // BATCH


def data(count, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=g, dtype=torch.float64)
    return x, (x @ torch.randn(3, 2, generator=g, dtype=torch.float64)).argmax(1)


TRAIN, VALID = data(N, 0), data(6, 1)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.middle, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, skip=False):
        h = torch.tanh(self.backbone(x))
        return self.head(h if skip else torch.tanh(self.middle(h))) * self.temperature

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=LR, momentum=MU, weight_decay=DECAY)


class Unfreezing(Net):
    """Frees its backbone in the second epoch."""

    def __init__(self):
        super().__init__()
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.backbone.requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": [*self.backbone.parameters()], "lr": 0.1})


class UnfreezingMidEpoch(Unfreezing):
    def on_train_epoch_start(self):
        pass

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 3:
            self.backbone.requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": [*self.backbone.parameters()], "lr": 0.1})


class Freezing(Net):
    """Freezes its backbone in the second epoch, and frees it in the third."""

    def on_train_epoch_start(self):
        self.backbone.requires_grad_(self.current_epoch != 1)


class LosingAGroup(Net):
    def configure_optimizers(self):
        groups = [
            {"params": [p for n, p in self.named_parameters() if "middle" not in n]},
            {"params": [*self.middle.parameters()]},
        ]
        return torch.optim.SGD(groups, lr=LR, momentum=MU, weight_decay=DECAY)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.trainer.optimizers[0].param_groups.pop()


class Skipping(Net):
    """Leaves a layer out of every other step."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0], skip=bool(batch_idx % 2)), batch[1])


class SkippingZeroed(Skipping):
    """Its gradients are zeroed rather than dropped: momentum and weight decay move the layer all the same."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


class Lossless(Net):
    """Every other micro-batch has no loss."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class LosslessZeroed(Lossless):
    optimizer_zero_grad = SkippingZeroed.optimizer_zero_grad


class HandSetRates(Net):
    """Edits the options of its groups between steps, as numbers of all kinds."""

    def on_train_batch_start(self, batch, batch_idx):
        group = self.trainer.optimizers[0].param_groups[0]
        group["lr"] = HAND_RATES[self.global_step](LR / (1 + self.global_step))
        group["weight_decay"] = 0.01 * self.global_step


HAND_RATES = [float, torch.tensor, __import__("numpy").float64, __import__("numpy").float32, float, float]
B, M, H, T = (
    ("backbone.weight", "backbone.bias"),
    ("middle.weight", "middle.bias"),
    ("head.weight", "head.bias"),
    ("temperature",),
)
ALL = (*B, *M, *H, *T)


def by_hand(plan):
    """Return the scores: minus the derivative of the final validation loss in every example's weight.

    Args:
        plan: Per step: learning rates of the parameters that the optimizer moves, whether layers are skipped, the
            micro-batches that have a loss with the divisor, which of the moved ones had a gradient of zeros at least,
            weight decay.
    """
    start = dict(Net().double().named_parameters())
    theta = {n: p.detach().clone().requires_grad_() for n, p in start.items()}
    weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
    memory, params = {}, dict(theta)
    for step in plan:
        # Nodes of this step: the gradient at a parameter that has not moved must not go back through earlier steps.
        params = {n: p.clone() for n, p in params.items()}
        loss = 0.0
        for micro in step.get("micros", ()):
            logits = torch.func.functional_call(SHELL, params, (TRAIN[0][micro], step.get("skip", False)))
            losses = F.cross_entropy(logits, TRAIN[1][micro], reduction="none")
            loss = loss + (losses * weights[micro]).mean() / step.get("divisor", 1)
        names = list(params)
        grads = [None] * len(names)
        if isinstance(loss, torch.Tensor):
            grads = torch.autograd.grad(loss, [params[n] for n in names], create_graph=True, allow_unused=True)
        after = dict(params)
        for name, grad in zip(names, grads, strict=True):
            rate = step["rates"].get(name)
            if rate is None or (grad is None and name not in step.get("zeros", ())):
                continue
            g = (torch.zeros_like(params[name]) if grad is None else grad) + step.get("decay", DECAY) * params[name]
            memory[name] = g if name not in memory else MU * memory[name] + g
            after[name] = params[name] - rate * memory[name]
        params = after
    final = F.cross_entropy(torch.func.functional_call(SHELL, params, (VALID[0],)), VALID[1])
    return -torch.autograd.grad(final, weights)[0], {n: p.detach() for n, p in params.items()}


SHELL = Net().double()


def micro(step):
    k = step % PER_EPOCH
    return list(range(k * BATCH, (k + 1) * BATCH))


def rates(*names, lr=LR):
    return dict.fromkeys(names, lr)


def steps(describe):
    return [{"micros": [micro(t)], **describe(t)} for t in range(EPOCHS * PER_EPOCH)]


def float_of(t):
    return float(HAND_RATES[t](LR / (1 + t)))


# name: (module, options of the Trainer, what the optimizer did)
CASES = {
    "thawed at an epoch": (
        Unfreezing,
        {},
        steps(lambda t: {"rates": rates(*M, *H, *T) | (rates(*B, lr=0.1) if t >= 2 else {})}),
    ),
    "thawed within an epoch": (
        UnfreezingMidEpoch,
        {},
        steps(lambda t: {"rates": rates(*M, *H, *T) | (rates(*B, lr=0.1) if t >= 3 else {})}),
    ),
    "frozen and thawed": (
        Freezing,
        {},
        steps(lambda t: {"rates": rates(*(ALL if t not in (2, 3) else (*M, *H, *T)))}),
    ),
    "a group that leaves": (
        LosingAGroup,
        {},
        steps(lambda t: {"rates": rates(*(ALL if t < 2 else (*B, *H, *T)))}),
    ),
    "a layer left out": (
        Skipping,
        {},
        steps(lambda t: {"rates": rates(*ALL), "skip": bool(t % 2)}),
    ),
    "a layer left out, zeroed": (
        SkippingZeroed,
        {},
        steps(lambda t: {"rates": rates(*ALL), "skip": bool(t % 2), "zeros": M}),
    ),
    "None under accumulation": (
        Lossless,
        {"accumulate_grad_batches": 2},
        [{"rates": rates(*ALL), "micros": [micro(0)], "divisor": 2} for _ in range(EPOCHS)],
    ),
    "None, zeroed": (
        LosslessZeroed,
        {},
        steps(lambda t: {"rates": rates(*ALL), "zeros": ALL, "micros": [] if t % 2 else [micro(t)]}),
    ),
    "rates edited by hand": (
        HandSetRates,
        {},
        steps(lambda t: {"rates": rates(*ALL, lr=float_of(t)), "decay": 0.01 * t}),
    ),
}


def fit(net, recorder=None, callbacks=(), **options):
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[*callbacks, *([recorder] if recorder else [])],
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no|`training_step` returned `None`")
        trainer.fit(net, loader())
    return {n: v.clone() for n, v in net.state_dict().items()}


def loader():
    return DataLoader(TensorDataset(*TRAIN), BATCH)


def score(net, path, **how):
    runner = InfluenceRunner(progress=False, certificate=how.pop("certificate", "off"))
    return runner.run(net, loader(), DataLoader(TensorDataset(*VALID), 6), log=path, **how).values[:, 0]


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_run_written_out(name, tmp_path):
    kind, options, plan = CASES[name]
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", keep="every(3)" if "thawed" in name else "every_step")
    net = kind()
    trained = fit(net, recorder, **options)
    plain = fit(kind(), **options)
    assert all(torch.equal(v, plain[n]) for n, v in trained.items())
    expected, final = by_hand(plan)
    assert all(torch.allclose(trained[n], v, rtol=1e-12, atol=1e-12) for n, v in final.items())
    for given in (net, kind()):  # the trained module, and a fresh one
        values = score(given, recorder.path)
        assert (values - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_left_out_examples_of_a_thawed_run(tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog", keep="every(2)")
    fit(Freezing(), recorder)
    runner = InfluenceRunner(progress=False)
    valid = DataLoader(TensorDataset(*VALID), 6)
    truth = runner.counterfactuals(Freezing(), loader(), valid, log=recorder.path, leave_out=[[1]])
    _, base = by_hand(CASES["frozen and thawed"][2])

    def loss(params):
        return F.cross_entropy(torch.func.functional_call(SHELL, params, (VALID[0],)), VALID[1]).item()

    without = [dict(s) for s in CASES["frozen and thawed"][2]]
    for s in without:  # the divisor stays: the mean of three is scaled
        s["micros"] = [[i for i in m if i != 1] for m in s["micros"]]
    kept = _scaled(without)
    assert truth.values[0, 0].item() == pytest.approx(loss(kept) - loss(base), rel=1e-9)


def _scaled(plan):
    """Return the final parameters where each batch's sum is divided by `BATCH`, whoever is left out."""
    scaled = [{**s, "divisor": BATCH / len(s["micros"][0])} for s in plan]
    return by_hand(scaled)[1]


def test_backbone_finetuning(tmp_path):
    def finetuning():
        return BackboneFinetuning(1, initial_denom_lr=1.0, lambda_func=lambda epoch: 1.5, train_bn=False)

    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    net = Net()
    trained = fit(net, recorder, [finetuning()])
    plain = fit(Net(), None, [finetuning()])
    assert all(torch.equal(v, plain[n]) for n, v in trained.items())
    with RunLog.open(recorder.path) as log:
        groups = [{n: g.options["lr"] for g in step.groups for n in g.params} for step in log.steps(0, len(log))]
        assert [set(B) <= set(g) for g in groups] == [False] * 2 + [True] * 4
        assert not any(step.changed for step in log.steps(0, len(log)))
    expected, _ = by_hand([{"rates": g, "micros": [micro(t)]} for t, g in enumerate(groups)])
    values = score(Net(), recorder.path, certificate="fast")
    assert (values - expected).abs().max() <= 1e-9 * expected.abs().max()
    last = by_hand([{"rates": g, "micros": [micro(t)]} for t, g in enumerate(groups)])[0]
    assert not torch.allclose(score(net, recorder.path, estimator=LastEpochs(1)), last)  # a part of them


class Student(Net):
    """Learns from an average of itself, which its own hook moves."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.backbone).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        apart = F.mse_loss(self.backbone(batch[0]), self.teacher(batch[0]))
        return super().training_step(batch, batch_idx) + apart

    def on_train_batch_end(self, *args):
        for p, q in zip(self.teacher.parameters(), self.backbone.parameters(), strict=True):
            p.data.lerp_(q.data, 0.2)


def test_a_mean_teacher_is_told_at_once_and_refused_for_its_true_reason(tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    net = Student()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trained = fit(net, recorder)
    said = [str(w.message) for w in warned]
    assert any("teacher.weight, teacher.bias changed in training before step 1 although" in s for s in said)
    assert any("changed param teacher.weight, param teacher.bias after the last step" in s for s in said)
    plain = fit(Student())
    assert all(torch.equal(v, plain[n]) for n, v in trained.items())
    with RunLog.open(recorder.path) as log:
        assert all("param teacher.weight" in step.changed for step in log.steps(1, len(log)))
    with pytest.raises(UnsupportedRunError, match=r"before step 5 .* changed .*param teacher\.weight.*FinalParameters"):
        score(net, recorder.path)
    assert score(net, recorder.path, estimator=FinalParameters()).abs().max() > 0  # as the message says


def test_frozen_weights_are_known_whatever_dtype_they_come_in(tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    net = Freezing()
    net.middle.requires_grad_(False)
    fit(net, recorder)  # in float64
    fresh = Freezing()  # in float32
    fresh.middle.requires_grad_(False)
    assert torch.equal(score(fresh, recorder.path), score(net, recorder.path))
    fresh.middle.weight.data[0, 0] += 1
    with pytest.raises(ModelMismatchError, match=r"^middle\.weight were not trained"):
        score(fresh, recorder.path)


class LowRank(nn.Module):
    """A linear layer with a trained correction of low rank beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 3)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Adapted(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.middle = LowRank(self.middle)


def test_adapters_log_what_is_trained_alone_and_know_their_base(tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run.tlog")
    fit(Adapted(), recorder)
    with RunLog.open(recorder.path) as log:
        assert [*log.state(0).params] == ["middle.down", "middle.up"]
        known = {name for name, _, _ in log.header.extra["constants"]}
    assert known == {*B, *H, *T, "middle.base.weight", "middle.base.bias"}
    assert score(Adapted(), recorder.path).abs().max() > 0
    other = Adapted()
    other.middle.base.bias.data += 1
    with pytest.raises(ModelMismatchError, match=r"middle\.base\.bias"):
        score(other, recorder.path)
