"""Treatments against their formulas written out by hand, and the suite that ships on each of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian

from lightning_sgdinf.curvature import ExactDiagonal, KroneckerFactors
from lightning_sgdinf.errors import ConfigurationError, DivergenceError, ForgettingError
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.testing import ModelUpdateSuite
from lightning_sgdinf.testing.runs import NormalisedNet, SmallNet, SmallRun, small_run
from lightning_sgdinf.updates import CounterfactualReplay
from lightning_sgdinf.updates.masks import LastLayers
from lightning_sgdinf.updates.post_hoc import FineTuning, Sgd
from lightning_sgdinf.updates.repair import (
    CertifiedRemoval,
    ElasticWeights,
    EnergyAlignment,
    EwcAscent,
    Failures,
    FisherStep,
    RelabelledReplay,
    ReweightedReplay,
    align,
    choosing_loss,
    input_range,
    learnt,
)
from lightning_sgdinf.updates.repair.certified import LogisticProblem
from tests.updates.test_extrapolated import opened

FAILURES = Failures(choosing=(0, 2, 4, 6, 8), judging=(1, 3, 5, 7, 9), blamed=(0, 4), held_out=(1,))
OWN = Selection(drop=(7, 0, 4))
IDS = sorted(OWN.drop)
NET = SmallNet()


class LinearNet(SmallNet):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self._modules.clear()
        self.append(nn.Linear(5, 3))
        self.double()


class TestFisherStep(ModelUpdateSuite):
    update = FisherStep(ExactDiagonal(), damping=100.0)


class TestEwcAscent(ModelUpdateSuite):
    # Sets whose ascent lowers the loss on the choosing half: of others the answer is the run's own model.
    update = EwcAscent(FAILURES, ElasticWeights(steps=3, rate=0.2), looks=(3,))
    selection = Selection(drop=(3, 0))
    another = Selection(drop=(8, 1))


class TestEnergyAlignment(ModelUpdateSuite):
    update = EnergyAlignment(FAILURES, steps=2, epochs=1, parameters=LastLayers(), weights=ElasticWeights(steps=3))


class TestRelabelledReplay(ModelUpdateSuite):
    update = RelabelledReplay()
    selection = Selection(drop=(1, 2, 6, 9, 3))
    another = Selection(drop=(0, 5, 8, 10))


class TestReweightedReplay(ModelUpdateSuite):
    update = ReweightedReplay(0.5)


class TestCertifiedRemoval(ModelUpdateSuite):
    update = CertifiedRemoval(penalty=1.0)

    def recorded(self) -> SmallRun:
        return small_run(make=LinearNet)


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


def params_of(run: SmallRun) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in run.log.state(9).params.items()}


def loss(run: SmallRun, params: dict[str, Tensor], ids: list[int], labels: Tensor | None = None) -> Tensor:
    x, y = run.train.dataset.tensors
    y = y[ids] if labels is None else labels
    return F.cross_entropy(functional_call(NET, params, (x[ids],)), y, reduction="none")


def flat(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.reshape(-1) for v in params.values()])


@pytest.mark.parametrize("selection", [OWN, Selection(relabel={5: 1, 2: 1})])
def test_a_fisher_step_is_the_solve_with_the_sets_gradient(small: SmallRun, selection: Selection) -> None:
    with opened(small) as run:
        updated = FisherStep(damping=0.3).update(run, selection)
        matrix = KroneckerFactors().of(run)
        params = params_of(small)
        own = IDS if selection.drop else sorted(selection.relabel)
        slope = grad(lambda p: loss(small, p, own).sum())(params)
        if selection.relabel:
            new = grad(lambda p: loss(small, p, own, torch.ones(len(own), dtype=torch.int64)).sum())(params)
            slope = {n: slope[n] - new[n] for n in slope}
        expected = flat(params) + matrix.solve(flat(slope)[None] / 13, 0.3)[0]
        same = {j: int(small.train.dataset.tensors[1][j]) for j in (5, 2)}
        stays = FisherStep().update(run, Selection(relabel=same)).state
    assert (flat(dict(updated.state.params)) - expected).abs().max() <= 1e-12
    assert torch.equal(flat(dict(stays.params)), flat(params))


def test_a_step_beyond_twice_the_minimum_is_refused_with_a_size_that_is_not(small: SmallRun) -> None:
    wanted = FisherStep(ExactDiagonal(), damping=1e-4)
    with opened(small) as run:
        with pytest.raises(DivergenceError, match=r"beyond 2 times.*KroneckerFactors.*size=") as raised:
            wanted.update(run, OWN)
        size = float(str(raised.value).rpartition("size=")[2])
        updated = replace(wanted, size=size).update(run, OWN)  # the advice, followed
        diagonal = ExactDiagonal().of(run).values
    params = params_of(small)
    slope = flat(grad(lambda p: loss(small, p, IDS).sum())(params)) / 13
    step = slope / (diagonal + 1e-4)
    # the Gauss-Newton matrix is the Hessian less the curvature of the network: by brute force over logits
    x = small.train.dataset.tensors[0]
    names = list(params)
    jacobian = torch.func.jacrev(lambda p: functional_call(NET, p, (x,)))(params)
    rows = torch.cat([jacobian[n].reshape(13, 3, -1) for n in names], 2)
    p = functional_call(NET, params, (x,)).softmax(1)
    moved = rows @ step
    bend = ((p * moved.square()).sum(1) - (p * moved).sum(1).square()).mean() + 1e-4 * step.square().sum()
    assert size == pytest.approx(float(slope @ step / bend), rel=0.01)
    assert (flat(dict(updated.state.params)) - flat(params) - size * step).abs().max() <= 1e-12


def test_ewc_ascent_is_the_capped_descent_by_hand_and_chooses_its_steps(small: SmallRun) -> None:
    weights = ElasticWeights(damping=0.05, steps=6, rate=0.4)
    with opened(small) as run:
        updated = EwcAscent(FAILURES, weights, cap=1.3, looks=(2, 6)).update(run, Selection(drop=(1, 8)))
        stiff_vector = ExactDiagonal().of(run).values + 0.05
        params = params_of(small)
        size = 0.4 / (float(stiff_vector.max()) + 1)
        start, velocity = flat(params), torch.zeros(len(stiff_vector), dtype=torch.float64)
        theta, tried = start, {0: start}

        def named(vector: Tensor) -> dict[str, Tensor]:
            parts = vector.split([v.numel() for v in params.values()])
            return {n: part.view_as(v) for (n, v), part in zip(params.items(), parts, strict=True)}

        capped = False
        for step in range(1, 7):
            live = (loss(small, named(theta), [1, 8]) < 1.3).double()
            capped |= not bool(live.all())
            up = flat(grad(lambda p, live=live: (live * loss(small, p, [1, 8])).sum() / 13)(named(theta)))
            velocity = 0.9 * velocity - up + stiff_vector * (theta - start)
            theta = theta - size * velocity
            tried[step] = theta
        losses = {}
        for step in (0, 2, 6):
            state = replace(run.model, params=named(tried[step]))
            losses[step] = choosing_loss(run, FAILURES, state)
    assert capped
    assert losses[6] < losses[0], "no step was the answer"
    best = min(losses, key=lambda k: losses[k])
    assert (flat(dict(updated.state.params)) - tried[best]).abs().max() <= 1e-12
    x, y = (t[list(FAILURES.choosing)] for t in small.validation.dataset.tensors)
    own = F.cross_entropy(functional_call(NET, params, (x,)), y)
    assert losses[0] == pytest.approx(float(own), rel=1e-12)


def test_no_step_is_the_answer_where_none_helps(small: SmallRun) -> None:
    with opened(small) as run:
        for drop in ([8], [9], [10], [0], [3]):
            updated = EwcAscent(FAILURES, ElasticWeights(steps=40)).update(run, Selection(drop=drop))
            if updated.notes[0].startswith("No step"):
                break
        else:
            raise AssertionError("every ascent helped")
        assert all(torch.equal(v, run.model.params[n]) for n, v in updated.state.params.items())
        # whatever is chosen is no worse on the choosing half, and finite even with a step that is far too long
        wild = EwcAscent(FAILURES, ElasticWeights(steps=40, rate=1e3)).update(run, OWN)
        assert choosing_loss(run, FAILURES, wild.state) <= choosing_loss(run, FAILURES, run.model)
    assert all(bool(torch.isfinite(v).all()) for v in wild.state.params.values())


def test_an_ascent_without_a_cap_is_refused() -> None:
    for cap in (math.inf, 0.0, -1.0, math.nan):
        with pytest.raises(ConfigurationError, match="cap"):
            EwcAscent(FAILURES, cap=cap)
    for looks in ((), (2, 1), (0,), (41,)):
        with pytest.raises(ConfigurationError, match="looks"):
            EwcAscent(FAILURES, looks=looks)


def test_inputs_move_down_the_energy_inside_the_range(small: SmallRun) -> None:
    weights, step = ElasticWeights(steps=5), 1e-6
    with opened(small) as run:
        model = learnt(run, FAILURES, weights)
        low, high = input_range(run)
        one = align(run, model, (0, 4, 7), steps=1, step_size=step, valid_range=(-1e9, 1e9))
        far = align(run, model, (0, 4, 7), steps=30, step_size=5.0, valid_range=(low, high))
    x = small.train.dataset.tensors[0][[0, 4, 7]]
    assert (low, high) == (float(small.train.dataset.tensors[0].min()), float(small.train.dataset.tensors[0].max()))

    def energy(inputs: Tensor) -> Tensor:
        return -functional_call(NET, dict(model.params), (inputs,)).logsumexp(1)

    slope = (x - one.inputs) / step
    for place in range(5):
        h = torch.zeros(5, dtype=torch.float64)
        h[place] = 1e-5
        central = (energy(x + h) - energy(x - h)) / 2e-5
        assert (slope[:, place] - central).abs().max() <= 1e-7 * (1 + central.abs().max())
    assert one.energies[0] == pytest.approx(float(energy(x).mean()), rel=1e-12)
    assert one.energies[1] == pytest.approx(float(energy(one.inputs).mean()), rel=1e-12)
    assert far.energies[-1] < one.energies[0]
    assert float(far.inputs.min()) >= low
    assert float(far.inputs.max()) <= high
    assert float(far.inputs.max()) == high, "the range was never reached"
    expected = functional_call(NET, dict(model.params), (far.inputs,)).softmax(1)
    assert (far.targets - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("last", [True, False])
def test_alignment_trains_on_moved_inputs_with_soft_labels(small: SmallRun, last: bool) -> None:
    sgd = Sgd(learning_rate=0.1, momentum=0.5, weight_decay=0.0, batch_size=13)
    update = EnergyAlignment(FAILURES, steps=3, epochs=2, sgd=sgd, **({"parameters": LastLayers()} if last else {}))
    with opened(small) as run:
        updated = update.update(run, OWN)
        aligned = align(
            run,
            learnt(run, FAILURES, ElasticWeights()),
            tuple(IDS),
            steps=3,
            step_size=0.1,
            valid_range=input_range(run),
        )
    x, y = (t.clone() for t in small.train.dataset.tensors)
    soft = F.one_hot(y, 3).double()
    x[IDS], soft[IDS] = aligned.inputs, aligned.targets
    params = params_of(small)
    velocity = {n: torch.zeros_like(v) for n, v in params.items()}
    for _ in range(2):
        slopes = grad(lambda p: -(soft * functional_call(NET, p, (x,)).log_softmax(1)).sum(1).mean())(params)
        slopes = {n: s if n.startswith("2.") or not last else 0 * s for n, s in slopes.items()}
        velocity = {n: 0.5 * velocity[n] + slopes[n] for n in params}
        params = {n: params[n] - 0.1 * velocity[n] for n in params}
    for name, value in updated.state.params.items():
        assert (value - params[name]).abs().max() <= 1e-12
    assert updated.energy_after < updated.energy_before


def test_labels_are_those_of_the_run_without_the_set(small: SmallRun) -> None:
    with opened(small) as run:
        updated = RelabelledReplay().update(run, OWN)
        without = CounterfactualReplay("all").update(run, OWN).state
        expected = CounterfactualReplay("all").update(run, Selection(relabel=updated.labels)).state
        tuned = RelabelledReplay(treatment=FineTuning()).update(run, OWN)
        fine = FineTuning().update(run, Selection(relabel=updated.labels))
    x = small.train.dataset.tensors[0][IDS]
    assert list(updated.labels) == IDS
    assert list(updated.labels.values()) == functional_call(NET, dict(without.params), (x,)).argmax(1).tolist()
    for got, wanted in ((updated.state, expected), (tuned.state, fine.state)):
        assert all(torch.equal(v, wanted.params[n]) for n, v in got.params.items())


def test_weights_are_those_of_the_replay(small: SmallRun) -> None:
    weights = torch.linspace(0.2, 1.7, 13, dtype=torch.float64)
    with opened(small) as run:
        got = ReweightedReplay(0.5, weights).update(run, OWN).state
        plain = ReweightedReplay().update(run, Selection()).state
        dropped = ReweightedReplay().update(run, OWN).state
        expected = CounterfactualReplay("all").update(run, OWN).state
        with pytest.raises(ConfigurationError, match=r"\[13\]"):
            ReweightedReplay(weights=torch.ones(12)).update(run, OWN)
    with pytest.raises(ConfigurationError, match="finite"):
        ReweightedReplay(weights=torch.tensor([1.0, math.nan]))
    assert all(torch.equal(v, small.log.state(9).params[n]) for n, v in plain.params.items())
    assert all(torch.equal(v, expected.params[n]) for n, v in dropped.params.items())
    weights[IDS] *= 0.5
    params = {n: v.clone() for n, v in small.log.state(0).params.items()}
    velocity = {n: torch.zeros_like(v) for n, v in params.items()}
    for step in small.log.steps(0, 9):
        ids = step.example_ids.tolist()
        slopes = grad(lambda p, ids=ids: (weights[ids] * loss(small, p, ids)).mean())(params)
        velocity = {n: 0.8 * velocity[n] + slopes[n] for n in params}
        params = {n: params[n] - 0.2 * velocity[n] for n in params}
    for name, value in got.params.items():
        assert (value - params[name]).abs().max() <= 1e-12


def test_what_certified_removal_leaves_behind_is_below_its_bound_and_near_retraining() -> None:
    linear, drop = small_run(make=LinearNet), [7, 0, 4, 9]
    update = CertifiedRemoval(penalty=0.02, sigma=0.5, epsilon=200.0)
    x, y = linear.train.dataset.tensors
    x = torch.cat([x, torch.ones(13, 1, dtype=torch.float64)], 1)
    noise = 0.5 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with opened(linear) as run:
        models = [update.update(run, Selection(drop=ids)) for ids in ([], drop)]
        with pytest.raises(ForgettingError, match=r"exceeds the budget.*cannot be certified"):
            replace(update, sigma=1e-4).update(run, Selection(drop=drop))
    kept = [j for j in range(13) if j not in drop]
    for updated, ids in zip(models, (list(range(13)), kept), strict=True):
        state = updated.state.params
        weights = torch.cat([state["0.weight"], state["0.bias"][:, None]], 1).T
        assert updated.certified
        for k in range(3):
            signs = torch.where(y[ids] == k, 1.0, -1.0).double()

            def objective(w: Tensor, signs: Tensor = signs, ids: list[int] = ids, k: int = k) -> Tensor:
                losses = F.softplus(-signs * (x[ids] @ w)).sum()
                return losses + 0.02 * len(ids) / 2 * w.square().sum() + noise[:, k] @ w

            residual = float(grad(objective)(weights[:, k]).norm())
            if not updated.notes or ids is not kept:
                assert residual <= 1e-7
                continue
            assert 1e-6 < residual <= updated.bounds[k]
            again = torch.zeros(6, dtype=torch.float64)
            for _ in range(12):  # trained without the set, to rounding
                again = again - torch.linalg.solve(hessian(objective)(again), grad(objective)(again))
            distance = float((weights[:, k] - again).norm())
            assert 1e-6 < distance <= updated.bounds[k] / (0.02 * len(ids))


@pytest.mark.parametrize("length", [0.1, 1.0, 10.0, 50.0])
def test_bounds_hold_for_inputs_of_any_length_and_are_near_what_they_bound(length: float) -> None:
    nearest = 0.0
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        x = length * torch.randn(12, 3, dtype=torch.float64, generator=generator)
        signs = torch.randint(0, 2, (12, 1), generator=generator).double() * 2 - 1
        noise = 0.5 * torch.randn(3, 1, dtype=torch.float64, generator=generator)
        problem = LogisticProblem(x, signs, noise, 0.01 * length**2)
        left = problem.without(torch.arange(12) < 1 + seed % 4)
        start = problem.minimum(torch.zeros(3, 1, dtype=torch.float64))
        step = -left.newton(start, left.gradient(start))

        def objective(w: Tensor, left: LogisticProblem = left) -> Tensor:
            losses = F.softplus(-left.signs[:, 0] * (left.inputs @ w)).sum()
            return losses + left.penalty * len(left.inputs) / 2 * w.square().sum() + left.noise[:, 0] @ w

        residual, bound = float(grad(objective)((start + step)[:, 0]).norm()), float(left.bounds(step)[0])
        assert residual <= bound * (1 + 1e-9) + 1e-12
        nearest = max(nearest, residual / bound)
    assert nearest > 0.05


class Negated(nn.Module):
    """Outputs of the other sign: the layer's weights are a classifier, the model's answers its opposite."""

    def forward(self, x: Tensor) -> Tensor:
        """Return them."""
        return x.neg_()


class StandardisedNet(LinearNet):
    """One layer, on inputs that are standardised by what training has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.insert(0, nn.BatchNorm1d(5, affine=False).double())


class NegatedNet(LinearNet):
    """One layer, and its outputs negated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.append(Negated())


@pytest.mark.parametrize(
    ("make", "said"), [(StandardisedNet, "running statistics"), (NegatedNet, "to be the logits of the loss")]
)
def test_nothing_is_certified_of_inputs_or_answers_that_are_not_the_layers(make: type[SmallNet], said: str) -> None:
    with opened(small_run(make=make)) as run, pytest.raises(ConfigurationError, match=said):
        CertifiedRemoval(sigma=0.5, epsilon=200.0, penalty=0.02).update(run, OWN)


def test_certificates_are_for_linear_models() -> None:
    with opened(small_run()) as run, pytest.raises(ConfigurationError, match=r"linear model.*2 such layers"):
        CertifiedRemoval().update(run, OWN)


def test_last_layers_are_the_last_in_the_models_order(small: SmallRun) -> None:
    with opened(small_run(make=NormalisedNet)) as run:
        chosen = LastLayers().choose(run, run.model, IDS).chosen
        assert int(chosen.sum()) == 15
        assert bool(chosen[-15:].all())
        assert LastLayers(2).choose(run, run.model, IDS).count == 15 + 24
    with pytest.raises(ConfigurationError, match="count"):
        LastLayers(0)
