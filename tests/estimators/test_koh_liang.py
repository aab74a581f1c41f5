"""Influence functions against closed forms in numpy, and against Hessians by an autograd of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.curvature import ConjugateGradient, Dense, Lissa, MomentumDescent
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, NonFiniteError
from lightning_sgdinf.estimators import KohLiang
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Draw, Header, MicroBatch, ParamGroup, Step
from lightning_sgdinf.query import FunctionQuery
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.testing import EstimatorSuite, relative_error
from tests.adjoint.cases import BY_NAME, Recorded, altered, edited, record


def scores(run: Recorded, estimator: KohLiang, **options: Any) -> Scores:
    runner = InfluenceRunner(**{"accelerator": "cpu", "certificate": "off", "progress": False} | options)
    return runner.run(run.module, run.train, run.validation, log=run.log, estimator=estimator)


def joined(named: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([v.reshape(-1) for v in named.values()])


class ByHand:
    """Gradients and Hessians of a case's losses, by ``torch.autograd.functional`` on its function by hand."""

    def __init__(self, name: str) -> None:
        self.run = record(BY_NAME[name])
        self.case = self.run.case
        state = self.run.log.state(len(self.run.log))
        self.shapes = {n: v.shape for n, v in state.params.items()}
        self.at, self.buffers = joined(state.params), {n: b.double() for n, b in state.buffers.items()}
        self.train, self.validation = (s.tensors for s in self.case.data())

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([s.numel() for s in self.shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def losses(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits, _ = self.case.twice.twin(self.named(vector), self.buffers, x, False, 0)
        return torch.log(logits.exp().sum(1)) - logits[torch.arange(len(y)), y]

    def mean(self, vector: Tensor) -> Tensor:
        penalty = self.run.module.penalty
        return self.losses(vector, *self.train).mean() + penalty * (vector * vector).sum()

    def hessian(self) -> Tensor:
        return torch.autograd.functional.hessian(self.mean, self.at)  # type: ignore[return-value]

    def slopes(self) -> Tensor:
        """Of the examples' own terms, ``[N, P]``."""
        return torch.autograd.functional.jacobian(lambda v: self.losses(v, *self.train), self.at)  # type: ignore[return-value]

    def query(self) -> Tensor:
        def ask(v: Tensor) -> Tensor:
            return self.losses(v, *self.validation).mean() + self.run.module.penalty * (v * v).sum()

        return torch.autograd.functional.jacobian(ask, self.at)  # type: ignore[return-value]

    def expected(self, matrix: Tensor, damping: float) -> Tensor:
        moved = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), self.query())
        return (self.slopes() @ moved / len(self.train[0]))[:, None]


@pytest.mark.parametrize(
    ("name", "size"), [("sgd", 500), ("momentum", 5), ("maximize", 500), ("momentum-pairs", 5), ("amsgrad", 500)]
)
def test_hessian_and_slopes(name: str, size: int) -> None:
    hand = ByHand(name)
    damping = 0.3 + 2 * max(0.0, -float(torch.linalg.eigvalsh(hand.hessian())[0]))
    expected = hand.expected(hand.hessian(), damping)
    for solver in (Dense(), ConjugateGradient(tolerance=1e-11)):
        values = scores(hand.run, KohLiang(solver, damping=damping, batch_size=size)).values
        assert relative_error(values, expected) < 1e-9, solver
    other = hand.expected(hand.hessian(), 2 * damping)
    assert relative_error(other, expected) > 1e-2, "the test is degenerate"


def test_gauss_newton_is_that_of_the_logits() -> None:
    for name, size in (("sgd", 5), ("momentum", 500), ("maximize", 5)):
        hand = ByHand(name)
        x, y = hand.train

        def logits(v: Tensor, hand: ByHand = hand, x: Tensor = x) -> Tensor:
            return hand.case.twice.twin(hand.named(v), hand.buffers, x, False, 0)[0]

        outputs = torch.autograd.functional.jacobian(logits, hand.at)  # [N, C, P]
        p = torch.softmax(logits(hand.at), 1)
        bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        matrix = torch.einsum("nap,nab,nbq->pq", outputs, bend, outputs) / len(y)
        matrix += 2 * hand.run.module.penalty * torch.eye(len(matrix), dtype=torch.float64)
        values = scores(hand.run, KohLiang(Dense(), damping=0.2, curvature="gauss_newton", batch_size=size)).values
        assert relative_error(values, hand.expected(matrix, 0.2)) < 1e-9, name
        same = relative_error(hand.expected(matrix, 0.2), hand.expected(hand.hessian(), 0.2)) < 1e-9
        assert same == (name == "sgd"), "equal for a linear model, and for no other"


class Ridge(nn.Module):
    """Linear regression with a penalty, as a part of the loss or of every example's."""

    def __init__(self, penalty: float, *, of_examples: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1).double()
        self.penalty = penalty
        if of_examples:
            self.per_example_loss = self._each

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.linear(x)[:, 0], y) + self._penalty()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.linear(x)[:, 0], y)

    def _each(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.linear(x)[:, 0], y, reduction="none") + self._penalty()

    def _penalty(self) -> Tensor:
        return 0.5 * self.penalty * sum((p * p).sum() for p in self.parameters())


PENALTY, N = 0.2, 40


def regression() -> tuple[np.ndarray, np.ndarray]:
    """Inputs with a column of ones, ``[N + 20, 5]``, and targets."""
    draw = np.random.default_rng(5)
    x = np.concatenate([draw.standard_normal((N + 20, 4)), np.ones((N + 20, 1))], axis=1)
    return x, x @ np.array([1.0, -2, 0.5, 0, 3]) + 0.5 * draw.standard_normal(N + 20)


def ended(theta: np.ndarray) -> MemoryLog:
    """A record whose last state is given; influence at the end asks for nothing else."""
    names = ("linear.weight", "linear.bias")
    parts = {"linear.weight": torch.tensor(theta[:4])[None], "linear.bias": torch.tensor(theta[4:])}
    header = Header(
        run_id="ridge",
        created="2026-01-01T00:00:00+00:00",
        model="Ridge",
        optimizer="torch.optim.sgd.SGD",
        parameters=(("linear.weight", (1, 4), "float64"), ("linear.bias", (1,), "float64")),
        precision="64-true",
        datasets=(("TensorDataset", N),),
    )
    step = Step(
        index=0,
        epoch=0,
        global_step=0,
        micro_batches=(MicroBatch(batch_idx=0, draws=(Draw(example_ids=np.arange(8)),)),),
        groups=(ParamGroup(params=names, options={"lr": 0.1}),),
    )
    return MemoryLog(header=header, steps=[step], states={1: ModelState(params=parts)})


def influence(model: Ridge, theta: np.ndarray, estimator: KohLiang, **options: Any) -> Tensor:
    x, y = (torch.from_numpy(a) for a in regression())
    train, validation = TensorDataset(x[:N, :4], y[:N]), TensorDataset(x[N:, :4], y[N:])
    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, **options)
    loaders = DataLoader(train, batch_size=8), DataLoader(validation, batch_size=7)
    return runner.run(model, *loaders, log=ended(theta), estimator=estimator).values[:, 0]


def ridge(keep: np.ndarray, penalised: np.ndarray | float = 1.0) -> np.ndarray:
    """Minimiser of ``sum_j keep_j (r_j^2 + penalised_j PENALTY / 2 |theta|^2) / N`` and of the rest of the penalty."""
    x, y = regression()
    x, y = x[:N], y[:N]
    strength = PENALTY * float(np.mean(penalised * np.ones(N)))
    return np.linalg.solve(2 * (x * keep[:, None]).T @ x / N + strength * np.eye(5), 2 * (x * keep[:, None]).T @ y / N)


@pytest.mark.parametrize("of_examples", [False, True])
@pytest.mark.parametrize("solver", [Dense(), ConjugateGradient(tolerance=1e-12), MomentumDescent(lr=0.1, epochs=400)])
def test_ridge_regression(solver: Any, of_examples: bool) -> None:
    x, y = regression()
    theta = ridge(np.ones(N))
    matrix = 2 * x[:N].T @ x[:N] / N + PENALTY * np.eye(5)
    query = 2 * x[N:].T @ (x[N:] @ theta - y[N:]) / 20
    slopes = 2 * (x[:N] @ theta - y[:N])[:, None] * x[:N] + (PENALTY * theta if of_examples else 0)
    expected = slopes @ np.linalg.solve(matrix, query) / N
    values = influence(Ridge(PENALTY, of_examples=of_examples), theta, KohLiang(solver, damping=0.0))
    assert relative_error(values, torch.from_numpy(expected)) < 1e-9


def test_sign_and_size_are_those_of_real_removal() -> None:
    """Left out exactly, by the closed form: differs from the estimate by the example's leverage alone."""
    x, y = regression()
    full = ridge(np.ones(N))

    def loss(theta: np.ndarray) -> float:
        return float(np.mean((x[N:] @ theta - y[N:]) ** 2))

    true, shared = [], []
    for j in range(N):
        keep = np.ones(N)
        keep[j] = 0
        true.append(loss(ridge(keep)) - loss(full))
        shared.append(loss(ridge(keep, penalised=keep)) - loss(full))
    values = influence(Ridge(PENALTY), full, KohLiang(Dense(), damping=0.0)).numpy()
    owned = influence(Ridge(PENALTY, of_examples=True), full, KohLiang(Dense(), damping=0.0)).numpy()
    assert np.corrcoef(values, true)[0, 1] > 0.98
    assert np.polyfit(values, true, 1)[0] == pytest.approx(1, abs=0.3)
    assert np.abs(owned - shared).max() < 0.3 * np.abs(shared).max()
    assert np.abs(owned - shared).mean() < np.abs(values - np.array(shared)).mean(), "the penalty's share shows"


def test_the_papers_variant_by_its_loop() -> None:
    """Curvature and slopes without the penalty, its strength in the damping, descent from the query's gradient."""
    x, y = regression()
    theta = ridge(np.ones(N))
    matrix = 2 * x[:N].T @ x[:N] / N
    query = 2 * x[N:].T @ (x[N:] @ theta - y[N:]) / 20
    v, velocity = query.copy(), np.zeros(5)
    for _ in range(100):
        velocity = 0.9 * velocity + matrix @ v + PENALTY * v - query
        v -= 0.01 * velocity
    expected = 2 * (x[:N] @ theta - y[:N]) * (x[:N] @ v) / N
    values = influence(Ridge(0.0), theta, KohLiang(MomentumDescent(), damping=PENALTY))
    assert relative_error(values, torch.from_numpy(expected)) < 1e-10
    solved = influence(Ridge(0.0), theta, KohLiang(Dense(), damping=PENALTY))
    assert relative_error(values, solved) > 1e-6, "the test is degenerate: it has converged"


def test_lissa_on_a_real_model() -> None:
    theta = ridge(np.ones(N))
    exact = influence(Ridge(PENALTY), theta, KohLiang(Dense(), damping=0.1))
    whole = influence(Ridge(PENALTY), theta, KohLiang(Lissa(depth=300), damping=0.1))
    rough = influence(
        Ridge(PENALTY), theta, KohLiang(Lissa(depth=150, repeats=2, scale=20.0), damping=0.1, batch_size=10)
    )
    assert relative_error(whole, exact) < 1e-8
    assert 1e-6 < relative_error(rough, exact) < 0.5


def test_several_queries_are_solved_together() -> None:
    hand = ByHand("momentum")

    def ask(model: nn.Module, data: Any) -> Tensor:
        x, y = data.loader.dataset.tensors
        each = F.cross_entropy(model(x), y, reduction="none")
        return torch.stack([each[:3].mean(), each[3:].sum(), each[:6].mean(), each[2:4].sum(), each[9]])

    runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    query = FunctionQuery(ask, labels=tuple("abcde"))
    estimator = KohLiang(ConjugateGradient(tolerance=1e-11), damping=1.6, batch_size=5)
    values = runner.run(
        hand.run.module, hand.run.train, hand.run.validation, log=hand.run.log, query=query, estimator=estimator
    ).values
    mean = scores(hand.run, estimator).values
    assert torch.allclose((3 * values[:, 0] + values[:, 1]) / 10, mean[:, 0], rtol=1e-8)


def test_average_is_the_model_that_is_asked() -> None:
    hand = ByHand("momentum-ema")
    average = hand.run.log.average
    assert average is not None
    last = hand.at
    hand.at = torch.cat([average[n].reshape(-1) for n in hand.shapes])
    assert (hand.at - last).abs().max() > 1e-3
    values = scores(hand.run, KohLiang(Dense(), damping=1.0)).values
    assert relative_error(values, hand.expected(hand.hessian(), 1.0)) < 1e-9


def test_indefinite_hessian_names_a_damping_that_works() -> None:
    hand = ByHand("momentum")
    low = float(torch.linalg.eigvalsh(hand.hessian())[0])
    assert low < 0, "the test is degenerate"
    with pytest.raises(DivergenceError, match="negative curvature") as caught:
        scores(hand.run, KohLiang(damping=0.0))
    wanted = float(str(caught.value).rsplit("damping=", 1)[1].rstrip("."))
    assert wanted > -low
    scores(hand.run, KohLiang(damping=wanted))


class Weighted(Ridge):
    """A batch's loss is a sum."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * len(batch[0])


def test_a_loss_that_is_no_mean_is_refused_unless_taken_one_by_one() -> None:
    theta = ridge(np.ones(N))
    with pytest.raises(ConfigurationError, match=r"not the mean .* batch_size=1"):
        influence(Weighted(0.0), theta, KohLiang(Dense(), damping=0.1))
    alone = influence(Weighted(0.0), theta, KohLiang(Dense(), damping=0.1, batch_size=1))
    assert relative_error(alone, influence(Ridge(0.0), theta, KohLiang(Dense(), damping=0.1))) < 1e-9


class Augmented(TensorDataset):
    """Adds noise from torch's generator."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn_like(x), y


def test_batches_made_anew_are_the_same() -> None:
    """Products of one matrix, whether batches fit into memory or not, and whatever is drawn on the way."""
    from lightning_sgdinf.curvature.products import TrainingCurvature
    from lightning_sgdinf.replay.batches import BatchSource
    from lightning_sgdinf.replay.host import Host
    from lightning_sgdinf.replay.objective import open_objective

    hand = ByHand("momentum")
    data = Augmented(*hand.train)
    products = []
    for room in (1 << 30, 200, 0):
        torch.manual_seed(3)
        source = BatchSource([DataLoader(data)], hand.run.log.header)
        with open_objective(hand.run.module, hand.run.log.header, source, Host()) as objective:
            objective.load(hand.run.log.state(9))
            curvature = TrainingCurvature(objective, hand.run.log.step(8), 12, batch_size=5, memory_bytes=room)
            rows = torch.eye(len(hand.at), dtype=torch.float64)[:2]
            products.append((curvature.product(rows), curvature.product(rows), curvature.slopes(rows)))
    for product, again, slopes in products:
        assert torch.equal(product, again)
        assert torch.equal(product, products[0][0])
        assert torch.equal(slopes, products[0][2])


def test_model_that_is_no_number_is_an_error() -> None:
    run = record(BY_NAME["momentum"])
    state = run.log.state(9)
    state.params["net.2.bias"][0] = float("nan")
    with pytest.raises(NonFiniteError):
        scores(Recorded(run.case, edited(run.log, states={9: state}), run.train, run.validation), KohLiang())


def test_notes_say_what_it_is() -> None:
    run = record(BY_NAME["sgd"])
    result = scores(run, KohLiang())
    assert result.certificate is not None
    assert "not a derivative of the run: ConjugateGradient" in result.certificate.notes[-1]
    assert "damping 0.01" in result.certificate.notes[-1]
    assert result.provenance["estimator"] == repr(KohLiang())
    for level in ("fast", "full"):
        checked = scores(run, KohLiang(), certificate=level).certificate
        assert checked is not None
        assert checked.trust is not None
        assert checked.trust.is_whole
        assert len(checked.trust.example_ids) == checked.trust.population


def test_float32_comes_near() -> None:
    run, wide = record(altered(BY_NAME["momentum"], dtype=torch.float32)), record(BY_NAME["momentum"])
    estimator = KohLiang(damping=1.6)
    assert relative_error(scores(run, estimator).values, scores(wide, estimator).values) < 1e-3


@pytest.mark.parametrize(
    "wrong", [lambda: KohLiang(damping=-1.0), lambda: KohLiang(curvature="fisher"), lambda: KohLiang(batch_size=0)]
)
def test_impossible_settings(wrong: Callable[[], KohLiang]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        wrong()


class TestKohLiang(EstimatorSuite):
    estimator = KohLiang(ConjugateGradient(tolerance=1e-13), damping=1.0)
    # Influence functions know the training set, not which of its examples were drawn.
    test_an_example_that_was_never_drawn_has_none = None  # type: ignore[assignment]
