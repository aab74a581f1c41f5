"""Every registered rule against its optimizer's own step, and rules for optimizers of one's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from lightning_sgdinf import register_rule
from lightning_sgdinf.adjoint.optim import AdamRule
from lightning_sgdinf.adjoint.optim import base as rules
from lightning_sgdinf.adjoint.optim.base import Pulled, Update, known_optimizers, rule_for
from lightning_sgdinf.adjoint.optim.sgd import SgdRule
from lightning_sgdinf.adjoint.optim.torch_optim import TorchOptimRule
from lightning_sgdinf.errors import UnknownOptimizerError
from lightning_sgdinf.testing import UpdateRuleSuite
from lightning_sgdinf.testing.updates import FORMULAS


class TestSGD(UpdateRuleSuite):
    optimizer = torch.optim.SGD
    options = (
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.2},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2, "maximize": True},
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    )
    tolerance = 0.0


class TestAdam(UpdateRuleSuite):
    optimizer = torch.optim.Adam
    options = ({"lr": 0.1}, {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "maximize": True})


class TestAdamW(UpdateRuleSuite):
    optimizer = torch.optim.AdamW
    options = ({"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.4, "amsgrad": True})


ADAMS = (torch.optim.Adam, torch.optim.AdamW)


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("warm", [0, 2])
def test_a_learning_rate_of_zero_moves_the_moments_only(
    kind: type[torch.optim.Optimizer], own: bool, amsgrad: bool, warm: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, dtype=torch.float64, generator=draw))
    optimizer = kind([parameter], lr=0.1, amsgrad=amsgrad)  # type: ignore[call-arg]

    def gradient() -> torch.Tensor:
        return torch.randn(5, dtype=torch.float64, generator=draw) * torch.tensor([0, 1, 1, 1, 1])  # one is dead

    for _ in range(warm):
        parameter.grad = gradient()
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    state = {k: v.clone() for k, v in optimizer.state[parameter].items()}
    theta, grad = parameter.detach().clone(), gradient()
    rule = TorchOptimRule(kind) if own else rule_for(f"{kind.__module__}.{kind.__qualname__}")
    update = rule.take(theta, grad, state, options)
    parameter.grad = grad
    optimizer.step()
    assert torch.equal(update.params, parameter.detach())
    torch.testing.assert_close(update.state, dict(optimizer.state[parameter]), rtol=1e-12, atol=0)

    u, first, second = (torch.randn(2, 5, dtype=torch.float64, generator=draw) for _ in range(3))
    pulled = update.pull(u, {"exp_avg": first, "exp_avg_sq": second})
    (beta1, beta2), scale = options["betas"], 1e-12
    torch.testing.assert_close(pulled.params, u, rtol=0, atol=0)
    torch.testing.assert_close(pulled.push, (1 - beta1) * first + 2 * (1 - beta2) * grad * second, rtol=scale, atol=0)
    if warm:
        torch.testing.assert_close(pulled.state["exp_avg"], beta1 * first, rtol=scale, atol=0)
        torch.testing.assert_close(pulled.state["exp_avg_sq"], beta2 * second, rtol=scale, atol=0)


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.3}, {"maximize": True, "weight_decay": 0.3}], ids=str)
def test_the_closed_form_of_adam_is_torchs_own_step_differentiated(
    kind: type[torch.optim.Optimizer], amsgrad: bool, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step and later, with elements whose second moment is zero, in one part and in several."""
    draw = torch.Generator().manual_seed(0)
    dead = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1, 1])
    parameter = torch.nn.Parameter(torch.randn(9, dtype=torch.float64, generator=draw) * dead)
    optimizer = kind([parameter], lr=0.1, amsgrad=amsgrad, betas=(0.8, 0.9), **more)  # type: ignore[call-arg]
    closed, own = rule_for(f"{kind.__module__}.{kind.__qualname__}"), TorchOptimRule(kind)
    assert isinstance(closed, AdamRule)
    for _ in range(4):
        options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        state = {k: v.clone() for k, v in optimizer.state.get(parameter, {}).items()}
        grad = torch.randn(9, dtype=torch.float64, generator=draw) * dead
        one, other = (rule.take(parameter.detach().clone(), grad, state, options) for rule in (closed, own))
        parameter.grad = grad.clone()
        optimizer.step()
        assert torch.equal(one.params, parameter.detach())
        assert all(torch.equal(one.state[k], v) for k, v in optimizer.state[parameter].items())
        u = torch.randn(2, 9, dtype=torch.float64, generator=draw)
        keys = [k for k, v in one.state.items() if v.ndim]
        for adjoint in ({}, {k: torch.randn(2, 9, dtype=torch.float64, generator=draw) for k in keys}):
            right = other.pull(u, adjoint)
            for part in (1 << 16, 4):
                monkeypatch.setattr("lightning_sgdinf.adjoint.optim.adam.PART", part)
                pulled = one.pull(u, adjoint)
                close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-14)
                close(pulled.params, right.params)
                close(pulled.push, right.push)
                for key in {*pulled.state, *right.state}:
                    close(pulled.state[key], right.state.get(key, torch.zeros_like(u)))


class TestNAdam(UpdateRuleSuite):
    optimizer = torch.optim.NAdam
    options = ({"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True})
    tolerance = 1e-6


class TestRAdam(UpdateRuleSuite):
    optimizer = torch.optim.RAdam
    options = ({"lr": 0.1, "betas": (0.9, 0.99)}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1})


class TestAdamax(UpdateRuleSuite):
    optimizer = torch.optim.Adamax
    options = ({"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1, "maximize": True})


class TestAdagrad(UpdateRuleSuite):
    optimizer = torch.optim.Adagrad
    options = ({"lr": 0.1, "initial_accumulator_value": 0.2}, {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-2})


class TestAdadelta(UpdateRuleSuite):
    optimizer = torch.optim.Adadelta
    options = ({"lr": 1.0, "eps": 1e-3}, {"lr": 1.0, "rho": 0.5, "eps": 1e-2, "weight_decay": 0.1})


class TestRMSprop(UpdateRuleSuite):
    optimizer = torch.optim.RMSprop
    options = (
        {"lr": 0.1, "eps": 1e-3},
        {"lr": 0.1, "alpha": 0.5, "eps": 1e-3, "momentum": 0.9, "centered": True, "weight_decay": 0.1},
    )


class TestASGD(UpdateRuleSuite):
    optimizer = torch.optim.ASGD
    options = ({"lr": 0.1, "lambd": 0.1, "weight_decay": 0.1},)


class SparseAdam(torch.optim.SparseAdam):
    """Takes dense gradients as sparse ones of all rows, and counts in a tensor, as the suite does."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = parameter.grad.to_sparse()
        super().step(closure)
        for own in self.state.values():
            own["step"] = torch.as_tensor(own["step"], dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own
class TestSparseAdam(UpdateRuleSuite):
    optimizer = SparseAdam
    options = ({"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-2, "maximize": True})

    def rule(self) -> rules.UpdateRule:
        return rule_for("torch.optim.sparse_adam.SparseAdam")


class TestGenericSGD(UpdateRuleSuite):
    """The generic rule agrees with SGD, too, but for the first momentum step, whose buffer torch detaches."""

    optimizer = torch.optim.SGD
    options = ({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},)
    warm_steps = (1, 4)

    def rule(self) -> TorchOptimRule:
        return TorchOptimRule(torch.optim.SGD)


def test_every_rule_is_in_the_suite_and_has_a_formula() -> None:
    tested = {c.optimizer.__name__ for c in UpdateRuleSuite.__subclasses__()}
    known = {n.rsplit(".", 1)[1] for n in known_optimizers() if n.startswith("torch.optim.")}
    assert known == tested == {*FORMULAS, "SparseAdam"}  # which needs the rows too; its oracle is test_sparse_adam.py


class WrongSgd(SgdRule):
    """Forgets that the weight decay acts on the adjoint, too."""

    def take(self, params, grad, state, options):
        update = super().take(params, grad, state, options)

        def pull(u, adjoint):
            right = update.pull(u, adjoint)
            return Pulled(u, right.state, right.push)

        return Update(update.params, update.state, pull)


class WrongStep(SgdRule):
    def take(self, params, grad, state, options):
        return super().take(params, grad, state, {**options, "lr": options["lr"] * (1 + 1e-9)})


def suite_with(rule: rules.UpdateRule) -> UpdateRuleSuite:
    suite = TestSGD()
    suite.rule = lambda: rule  # type: ignore[method-assign]
    return suite


def test_the_suite_fails_for_wrong_rules() -> None:
    with pytest.raises(AssertionError, match="weight_decay"):
        suite_with(WrongSgd()).test_pull_is_the_transpose()
    with pytest.raises(AssertionError, match="parameters"):
        suite_with(WrongStep()).test_step_is_the_optimizers()


@pytest.mark.parametrize("name", ["rprop.Rprop", "lbfgs.LBFGS", "_muon.Muon"])
def test_optimizers_without_a_rule_are_refused_by_name(name: str) -> None:
    with pytest.raises(
        UnknownOptimizerError,
        match=f"no update rule for torch.optim.{name}; known are .*AdamW.*register_rule",
    ):
        rule_for(f"torch.optim.{name}")


def test_a_rule_of_ones_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule("mine.Descent", SgdRule)
    assert isinstance(rule_for("mine.Descent"), SgdRule)
    assert "mine.Descent" in known_optimizers()


def test_a_step_of_many_elements_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    params, grad, u, of_moment = (torch.randn(n, 11, generator=generator, dtype=torch.float64) for n in (1, 1, 2, 2))
    state = {"step": torch.tensor(3.0), "exp_avg": grad[0] / 2, "exp_avg_sq": grad[0] ** 2}
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    rule = TorchOptimRule(torch.optim.Adam)

    def taken() -> list[torch.Tensor]:
        update = rule.take(params[0], grad[0], state, options)
        pulled = update.pull(u, {"exp_avg": of_moment, "exp_avg_sq": of_moment})
        values = [update.params, *(update.state[k] for k in sorted(update.state)), pulled.params, pulled.push]
        return [*values, *(pulled.state[k] for k in sorted(pulled.state))]

    whole = taken()
    monkeypatch.setattr("lightning_sgdinf.adjoint.optim.torch_optim.PART", 4)
    assert len(whole) == 8
    assert all(map(torch.equal, whole, taken()))
