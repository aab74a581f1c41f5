"""States that are out of the ordinary: recorded and replayed, or refused before the second step, with what to do.

Whatever they are, a recorder that is not strict lets training be what it is without one.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, TrajectoryRecorder
from lightning_sgdinf.errors import SgdInfluenceError, UnsupportedRunError
from lightning_sgdinf.log import store

STEPS = 6


class Net(pl.LightningModule):
    def __init__(self, change: Callable[[Any], None], at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.rate = nn.Linear(3, 4), nn.Linear(4, 2), 0.1
        self.change, self.at, self.scale = change, at, 1.0
        self.embedding: nn.Module | None = None
        self.growing = False
        if at is None:
            change(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = x + self.embedding(torch.arange(len(x)))
        if self.growing and self.training:
            self.odd = torch.cat((self.odd, x.detach().mean().view(1)))
        return self.b(torch.tanh(self.a(x))) * (1 + torch.as_tensor(self.scale).sum().abs())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.at is not None and isinstance(self.trainer, pl.Trainer) and self.global_step >= self.at:
            self.change(self)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.0 if self.embedding is not None else 0.9)


def buffer(value: Any) -> Callable[[Net], None]:
    return lambda net: net.register_buffer("odd", value())


def parameter(value: Any) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.scale = nn.Parameter(value())

    return change


def embedding(net: Net) -> None:
    net.embedding = nn.Embedding(4, 3, sparse=True)


def numpy_rate(net: Net) -> None:
    net.rate = np.float32(0.05)


def numpy_rate_later(net: Net) -> None:
    net.trainer.optimizers[0].param_groups[0]["lr"] = np.float32(0.05)


def grow(net: Net) -> None:
    net.odd = torch.zeros(2 + net.global_step)


def grow_in_the_pass(net: Net) -> None:
    net.register_buffer("odd", torch.zeros(1))
    net.growing = True


def grow_from(net: Net) -> None:
    net.register_buffer("odd", torch.zeros(1))


def other_type(net: Net) -> None:
    net.odd = torch.zeros(2, dtype=(torch.float64, torch.int8)[net.global_step % 2])


def replace(net: Net) -> None:
    if net.global_step == net.at:
        net.a.weight = nn.Parameter(net.a.weight.detach().clone())


def swap_data(net: Net) -> None:
    net.a.weight.data = net.a.weight.data.clone()


def reshape(net: Net) -> None:
    net.scale.data = net.scale.data.reshape(2, 2)
    net.scale.grad = None
    net.trainer.optimizers[0].state.pop(net.scale, None)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


KINDS: dict[str, tuple[Callable[[Net], None], int | None]] = {
    "scalar parameter": (parameter(lambda: torch.tensor(1.5)), None),
    "scalar buffer": (buffer(lambda: torch.tensor(3)), None),
    "empty parameter": (parameter(lambda: torch.empty(0, 2)), None),
    "complex parameter": (parameter(lambda: torch.ones(2, dtype=torch.complex64)), None),
    "complex buffer": (buffer(lambda: torch.ones(2, dtype=torch.complex64)), None),
    "float8 buffer": (buffer(lambda: torch.ones(2).to(torch.float8_e4m3fn)), None),
    "float8 buffer of another kind": (buffer(lambda: torch.ones(2).to(torch.float8_e8m0fnu)), None),
    "half complex buffer": (buffer(lambda: torch.zeros(2, dtype=torch.complex32)), None),
    "quantized buffer": (buffer(quantized), None),
    "sparse buffer": (buffer(lambda: torch.eye(3).to_sparse()), None),
    "sparse buffer by rows": (buffer(lambda: torch.eye(3).to_sparse_csr()), None),
    "buffer with NaN": (buffer(lambda: torch.tensor([float("nan"), -0.0, float("inf")])), None),
    "buffer that is a view": (buffer(lambda: torch.arange(6.0).view(2, 3).t()), None),
    "sparse gradient": (embedding, None),
    "numpy learning rate": (numpy_rate, None),
    "numpy learning rate, later": (numpy_rate_later, 3),
    "buffer grows in the pass": (grow_in_the_pass, None),
    "buffer appears": (buffer(lambda: torch.ones(3)), 3),
    "parameter's data swapped": (swap_data, 3),
}  # fmt: skip
CHANGING: dict[str, tuple[Callable[[Net], None], Callable[[Net], None], int]] = {
    "buffer grows": (grow_from, grow, 0),
    "buffer grows, later": (grow_from, grow, 3),
    "buffer changes its type": (grow_from, other_type, 0),
    "parameter reshaped": (parameter(lambda: torch.ones(4)), reshape, 3),
    "parameter replaced": (lambda net: None, replace, 3),
}


def make(kind: str) -> Net:
    if kind in KINDS:
        return Net(*KINDS[kind])
    first, later, at = CHANGING[kind]
    net = Net(later, at)
    first(net)
    return net


def loader() -> DataLoader:
    x = torch.arange(12.0).view(4, 3).sin()
    return DataLoader(TensorDataset(x, torch.tensor([0, 1, 1, 0])), 2, shuffle=True)


def fit(kind: str, *callbacks: pl.Callback) -> dict[str, Tensor]:
    """Return what the module holds after a short fit."""
    net = make(kind)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    trainer = pl.Trainer(
        max_steps=STEPS, callbacks=[*callbacks], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(net, loader())
    return dict(net.named_parameters()) | dict(net.named_buffers())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell if tensors of any kind have the same bits."""
    return one.keys() == other.keys() and all(bits(v) == bits(other[n]) for n, v in one.items())


def bits(value: Tensor) -> tuple[object, ...]:
    plain = value.detach()
    plain = plain.int_repr() if plain.is_quantized else plain.to_dense() if plain.layout != torch.strided else plain
    storage = plain.clone(memory_format=torch.contiguous_format).untyped_storage()
    return value.dtype, value.layout, tuple(value.shape), bytes(storage)


@pytest.fixture(params=[*KINDS, *CHANGING])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


REFUSED = {"complex parameter": "Keep real and imaginary part in two parameters"}
"""What a strict recorder says before training."""

NOT_REPLAYED = {
    "buffer appears": "pass the model that was trained, with the buffers that it registers while it trains",
    "buffer grows": "something other than the optimizer changed buffer odd",
    "buffer grows, later": "something other than the optimizer changed buffer odd",
    "buffer changes its type": "something other than the optimizer changed buffer odd",
    "parameter reshaped": "Record what follows the change in a fit of its own",
    "parameter replaced": "leads to another state than the recorded one",
}
"""What replay says of states that change in a hook, later than the first step: they are recorded as they were."""


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:torch.quantize_per", "ignore:Sparse CSR")  # torch's own
def test_an_odd_state_is_replayed_or_refused_in_time_and_never_touches_training(kind: str, tmp_path: Path) -> None:
    plain, recorder, seen = fit(kind), TrajectoryRecorder(tmp_path / "run"), Steps()
    if kind in REFUSED:
        with pytest.raises(UnsupportedRunError, match=REFUSED[kind]):
            fit(kind, recorder, seen)
        assert seen.taken == 0
        recorder = TrajectoryRecorder(tmp_path / "lax", strict=False)
    assert same(fit(kind, recorder), plain)
    with RunLog.open(recorder.path) as log:
        assert log.verify().ok
        assert len(log) == STEPS
        assert all(bits(value) == bits(plain[name]) for name, value in log.state(STEPS).params.items())
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="fast")
    if kind in REFUSED or kind in NOT_REPLAYED:
        with pytest.raises(SgdInfluenceError, match=REFUSED.get(kind) or NOT_REPLAYED[kind]):
            runner.run(make(kind), loader(), loader(), log=recorder.path)
        return
    scores = runner.run(make(kind), loader(), loader(), log=recorder.path)
    assert scores.values.abs().max() > 0
    assert scores.values.isfinite().all()


class Steps(pl.Callback):
    """Counts the steps that were taken."""

    taken = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.taken += 1


class Wrapper(Tensor):
    """A tensor with another one inside and no memory of its own, as distributed and quantized ones are."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*(a.inner if isinstance(a, Wrapper) else a for a in args), **(kwargs or {}))
        return Wrapper(made) if func.overloadpacket is torch.ops.aten.detach else made


def lazy(net: Net) -> None:
    net.a = nn.LazyLinear(4)


def half_a_name(net: Net) -> None:
    net.more = nn.ModuleDict({"class \udcff": nn.Linear(2, 2)})


IMPOSSIBLE: dict[str, tuple[Callable[[Net], None], str]] = {
    "lazy layer": (lazy, r"a\.weight has no shape yet.*configure_model"),
    "tensor without memory": (buffer(lambda: Wrapper(torch.ones(2))), "odd is a Wrapper.*plain tensors"),
    "name with half a character": (half_a_name, r"udcff.*half a character.*another one"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_what_no_log_can_hold_is_said_before_training(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    change, advice = IMPOSSIBLE[kind]
    monkeypatch.setitem(KINDS, kind, (change, None))
    seen, lax = Steps(), TrajectoryRecorder(tmp_path / "lax", strict=False)
    with pytest.raises(UnsupportedRunError, match=advice):
        fit(kind, TrajectoryRecorder(tmp_path / "run"), seen)
    assert seen.taken == 0
    fit(kind, lax, seen)
    assert (seen.taken, lax.recorded) == (STEPS, False)


def test_a_lazy_layer_is_recorded_once_it_has_seen_an_example(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(KINDS, "lazy", (lazy, None))
    monkeypatch.setattr(Net, "configure_model", lambda net: net(torch.zeros(1, 3)))
    recorder = TrajectoryRecorder(tmp_path / "run")
    fit("lazy", recorder)
    with RunLog.open(recorder.path) as log:
        assert len(log) == STEPS


def note_a_file(net: Net) -> None:
    net.current = f"\udcff-{net.global_step}.png"  # as the system tells the name of a file that is not UTF-8
    net.several = [net.current, "x" * net.global_step]


def odd_option(net: Net) -> None:
    net.trainer.optimizers[0].param_groups[0].update({"note": "\udcff", "\udcff": 1})


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


def large_option(net: Net) -> None:
    endless: list[Any] = []
    endless.append(endless)
    large = {"text": "x" * (17 << 20), "digits": 10**5000, "endless": endless, "loud": Loud()}
    net.trainer.optimizers[0].param_groups[0].update(large)


@pytest.mark.parametrize("change", [note_a_file, odd_option, large_option])
def test_what_the_writer_writes_its_reader_reads(change: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Readers refuse halves of characters; a record that holds one would be lost as a whole."""
    monkeypatch.setitem(KINDS, "half", (change, 1))
    recorder = TrajectoryRecorder(tmp_path / "run", strict=False)
    assert same(fit("half", recorder), fit("half"))
    with RunLog.open(recorder.path) as log:
        assert log.verify().ok
        assert len(log) == STEPS


@pytest.mark.parametrize("strict", [True, False])
def test_a_step_that_no_reader_would_read_back_ends_the_record_alone(
    strict: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """The fault is not the disk's, so training goes on, and what was recorded before stays."""
    monkeypatch.setitem(KINDS, "large", (lambda net: None, None))
    encode, recorder = store.encode_step, TrajectoryRecorder(tmp_path / "run", strict=strict)

    def refuse(step: Any) -> Any:
        if step.index == 3:
            raise ValueError("a document of 17826064 bytes")
        return encode(step)

    monkeypatch.setattr(store, "encode_step", refuse)
    assert same(fit("large", recorder), fit("large"))
    with RunLog.open(recorder.path) as log:
        assert log.verify().ok
        assert len(log) <= 3
