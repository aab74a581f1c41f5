"""Operations that torch differentiates once: told while the run is recorded, with ways around that work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.baselines import LossBaseline
from lightning_sgdinf.errors import UnsupportedRunError
from lightning_sgdinf.estimators import (
    AccumulatedInfluence,
    FinalParameters,
    KohLiang,
    LastEpochs,
    NoHessian,
    SgdInfluence,
    TracIn,
)
from lightning_sgdinf.kernels import once_differentiable_in
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.testing import relative_error
from tests.runner.situations import Module, N, Params, Run, Situation, apply_linear, likelihoods

TOLD = r"About the record of this run: the training step calls {}, of which torch has no second derivative"


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class OwnFunction(Situation):
    """A function of one's own that is differentiated once."""

    def outputs(self, net: nn.Module, x: Tensor) -> Tensor:
        return Doubled.apply(net(x))  # type: ignore[no-untyped-call, no-any-return]

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        return F.cross_entropy(self.outputs(net, batch[0]), batch[1])

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y = (c[ids] for c in self.columns())
        return likelihoods(2 * apply_linear(p, x), y) / len(ids)


class InSegments(OwnFunction):
    """An operation of torch's that is differentiated once."""

    def outputs(self, net: nn.Module, x: Tensor) -> Tensor:
        twice = net(x).repeat_interleave(2, 0)
        return torch.segment_reduce(twice, "sum", lengths=torch.full((len(x),), 2))


class Later(OwnFunction):
    """Calls it from the second epoch on."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        outputs = self.outputs(net, batch[0]) if t >= 3 else 2 * net(batch[0])
        return F.cross_entropy(outputs, batch[1])


class Earlier(OwnFunction):
    """Calls it in the first epoch alone."""

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        outputs = self.outputs(net, batch[0]) if t < 3 else 2 * net(batch[0])
        return F.cross_entropy(outputs, batch[1])


def scores(run: Run, **how: Any) -> Any:
    return InfluenceRunner(accelerator="cpu", progress=False).run(
        run.module, run.train, run.held_out, log=run.path, **how
    )


@pytest.mark.parametrize(("kind", "name"), [(OwnFunction, "Doubled"), (InSegments, r"torch\.segment_reduce")])
def test_it_is_told_while_recording_and_every_way_around_works(
    kind: type[Situation], name: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=TOLD.format(name)) as warned:
        run = Run(kind(), tmp_path)
    assert len([w for w in warned if "About the record" in str(w.message)]) == 1
    with RunLog.open(run.path) as log:
        assert "no second derivative" in str(log.header.extra["remarks"])
    with pytest.raises(UnsupportedRunError, match=rf"step 8 calls {name}.*per_example_loss="):
        run.scores()
    given = run.scores(per_example_loss=lambda module, batch, i: likelihoods(2 * module.net(batch[0]), batch[1]))
    assert relative_error(given.values, run.unrolled()) < 1e-9
    if kind is InSegments:  # the rest has nothing to do with what it is
        return
    assert relative_error(run.counterfactuals().values, run.trained_again()) < 1e-9
    left = torch.ones(N, dtype=torch.float64).index_fill(0, torch.tensor([1, 7]), 0.0)
    assert float(run.situation.query(run.updated().state.params)) == pytest.approx(run.take(left, graph=False).item())
    assert scores(run, estimator=LossBaseline()).values.shape == (N, 1)
    plain = trained_without_recorder(run)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), run.module.parameters(), strict=True))


def trained_without_recorder(run: Run) -> Module:
    pl.seed_everything(3, verbose=False)
    module = Module(run.situation)
    pl.Trainer(
        max_epochs=run.situation.epochs, precision="64-true", accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(module, run.train, run.held_out)  # fmt: skip
    return module


@pytest.mark.filterwarnings("ignore:About the record of this run")
@pytest.mark.parametrize(
    "estimator",
    [SgdInfluence(), LastEpochs(1), FinalParameters(), NoHessian(), TracIn(), AccumulatedInfluence(), KohLiang()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_no_estimator_goes_through_it(estimator: Any, recorded: Run) -> None:
    with pytest.raises(UnsupportedRunError, match=r"calls Doubled.*counterfactuals"):
        scores(recorded, estimator=estimator)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(OwnFunction(), tmp_path_factory.mktemp("once"))


def test_an_operation_of_later_epochs_is_told_when_it_comes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=TOLD.format("Doubled")):
        run = Run(Later(), tmp_path)
    with RunLog.open(run.path) as log:
        assert "no second derivative" in log.end_reason


@pytest.mark.filterwarnings("ignore:About the record of this run")
def test_epochs_that_do_not_call_it_are_walked(tmp_path: Path) -> None:
    run = Run(Earlier(), tmp_path)
    last = scores(run, estimator=LastEpochs(2)).values
    with pytest.raises(UnsupportedRunError, match="step 2 calls Doubled"):
        run.scores()
    whole = Run(Plain(), tmp_path / "plain")
    assert relative_error(last, scores(whole, estimator=LastEpochs(2)).values) < 1e-9


class Plain(OwnFunction):
    def outputs(self, net: nn.Module, x: Tensor) -> Tensor:
        return 2 * net(x)


@pytest.mark.parametrize("call", [
    lambda x: torch.segment_reduce(x, "max", lengths=torch.tensor([1, 2])),
    lambda x: torch._masked_softmax(x, torch.zeros(3, 4, dtype=torch.bool), 1),
    lambda x: torch.distributions.StudentT(x.abs() + 3).rsample(),
    lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(),
    lambda x: torch.sparse.log_softmax(x.to_sparse(), 1).to_dense(),
    lambda x: torch.sparse.sum(x.to_sparse(), 0).to_dense(),
    lambda x: torch.sparse.mm(torch.eye(3, dtype=x.dtype).to_sparse_csr(), x, "mean"),
    lambda x: torch._fake_quantize_learnable_per_tensor_affine(
        x.float(), torch.ones(1, requires_grad=True), torch.zeros(1), 0, 9, 1.0
    ),
    lambda x: torch._fake_quantize_learnable_per_channel_affine(
        x.float(), torch.ones(3, requires_grad=True), torch.zeros(3), 0, 0, 9, 1.0
    ),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_what_is_named_has_no_second_derivative(call: Any) -> None:
    x = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4).requires_grad_()
    loss = call(x).pow(2).sum()
    assert once_differentiable_in(loss)
    slope = torch.autograd.grad(loss, x, create_graph=True)[0].pow(2).sum()
    with pytest.raises(RuntimeError, match="is not implemented"):
        torch.autograd.grad(slope, x)


def test_functions_that_are_marked_are_named_and_others_are_not() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    assert once_differentiable_in(torch.distributions.Dirichlet(x).rsample().sum()) == ("_Dirichlet",)
    assert once_differentiable_in(x.tanh().cumprod(0).logsumexp(0).sum()) == ()
