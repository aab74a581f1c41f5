r"""Tests that any update rule must pass, one's own included.

Subclass in a test file, and pytest collects the methods::

    from lightning_sgdinf.testing import UpdateRuleSuite

    class TestMyOptimizer(UpdateRuleSuite):
        optimizer = MyOptimizer
        options = ({"lr": 0.1}, {"lr": 0.1, "momentum": 0.9})

The optimizer's own step is the oracle: the rule's step must equal it, and the rule's pull must be the transpose of its
derivative, :math:`\langle u, J v\rangle = \langle J^T u, v\rangle`, with :math:`Jv` by central differences of real
steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import UpdateRule, rule_for

_SIZE = 6
_EPS = 1e-6


class UpdateRuleSuite:
    """Tests of the rule of one optimizer; see the module's text.

    Attributes:
        optimizer: The class.
        options: Hyper-parameters to try, as its constructor takes them.
        warm_steps: Numbers of steps after which a step is looked at; 0 is the first.
        tolerance: Allowed error of the step, relative; what torch keeps in float32 sets it.
    """

    optimizer: ClassVar[type[torch.optim.Optimizer]]
    options: ClassVar[Sequence[Mapping[str, Any]]] = ({"lr": 0.1},)
    warm_steps: ClassVar[Sequence[int]] = (0, 1, 7)
    tolerance: ClassVar[float] = 1e-12

    def rule(self) -> UpdateRule:
        """Return the rule that is registered for the optimizer."""
        return rule_for(f"{self.optimizer.__module__}.{self.optimizer.__qualname__}")

    def test_step_is_the_optimizers(self) -> None:
        """Check that the rule leads to the parameters and the state that the optimizer leads to."""
        for options, warm in self._moments():
            theta, grad, state, group = self._warmed(options, warm)
            params, after = self._real(options, group, theta, grad, state)
            update = self.rule().take(theta, grad, state, group)
            moved = (params - theta).abs().max()
            assert moved > 0, f"the test is degenerate: {options} does not move the parameters after {warm} steps"
            assert (update.params - params).abs().max() <= self.tolerance * moved, (options, warm, "parameters")
            for key, value in update.state.items():
                gap = (value.double() - after[key].double()).abs().max()
                assert gap <= max(self.tolerance, 1e-6 * (value.ndim == 0)) * after[key].abs().max().clamp_min(1e-30), (
                    options,
                    warm,
                    key,
                )

    def test_pull_is_the_transpose(self) -> None:
        """Check that the pull is the transposed derivative of the step, in parameters, gradient and state."""
        for options, warm in self._moments():
            theta, grad, state, group = self._warmed(options, warm)
            update = self.rule().take(theta, grad, state, group)
            moving = [k for k, v in state.items() if v.shape == theta.shape]
            u = torch.randn(1, _SIZE, dtype=torch.float64)
            later = {
                k: torch.randn(1, _SIZE, dtype=torch.float64) for k, v in update.state.items() if v.shape == theta.shape
            }
            pulled = update.pull(u, later)
            v, dg = torch.randn(_SIZE, dtype=torch.float64), torch.randn(_SIZE, dtype=torch.float64)
            dm = {k: torch.randn(_SIZE, dtype=torch.float64) * state[k].abs().mean() for k in moving}
            ends = []
            for sign in (_EPS, -_EPS):
                shifted = {k: value + sign * dm[k] if k in dm else value for k, value in state.items()}
                params, after = self._real(options, group, theta + sign * v, grad + sign * dg, shifted)
                ends.append((u[0] @ params) + sum(later[k][0] @ after[k] for k in later))
            forwards = float(ends[0] - ends[1]) / (2 * _EPS)
            backwards = float(
                pulled.params[0] @ v + pulled.push[0] @ dg + sum(c[0] @ dm[k] for k, c in pulled.state.items())
            )
            size = float(pulled.params.norm() + pulled.push.norm())
            assert pulled.push.abs().max() > 0, f"the test is degenerate: {options} does not use the gradient"
            assert abs(forwards - backwards) <= 1e-6 * size, (options, warm, forwards, backwards)

    def test_rows_do_not_mix(self) -> None:
        """Check that several adjoints pulled at once come out as one by one."""
        for options, warm in self._moments():
            theta, grad, state, group = self._warmed(options, warm)
            update = self.rule().take(theta, grad, state, group)
            u = torch.randn(3, _SIZE, dtype=torch.float64)
            later = {
                k: torch.randn(3, _SIZE, dtype=torch.float64) for k, v in update.state.items() if v.shape == theta.shape
            }
            together = update.pull(u, later)
            for row in range(3):
                alone = update.pull(u[row : row + 1], {k: v[row : row + 1] for k, v in later.items()})
                pairs = [(together.params, alone.params), (together.push, alone.push)]
                pairs += [(together.state[k], alone.state[k]) for k in together.state]
                assert all((a[row] - b[0]).abs().max() <= 1e-12 * (1 + b.abs().max()) for a, b in pairs), (
                    options,
                    warm,
                )

    def _moments(self) -> list[tuple[Mapping[str, Any], int]]:
        torch.manual_seed(3)
        return [(options, warm) for options in self.options for warm in self.warm_steps]

    def _warmed(
        self, options: Mapping[str, Any], steps: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Any]]:
        """Return parameters, a gradient, the optimizer's state after some steps, and the group's options."""
        parameter = torch.nn.Parameter(torch.randn(_SIZE, dtype=torch.float64))
        optimizer = self.optimizer([parameter], **options)
        for _ in range(steps):
            parameter.grad = torch.randn(_SIZE, dtype=torch.float64)
            optimizer.step()
        state = {k: v.detach().clone() for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        return parameter.detach().clone(), torch.randn(_SIZE, dtype=torch.float64), state, group

    def _real(
        self,
        options: Mapping[str, Any],
        group: Mapping[str, Any],
        theta: Tensor,
        grad: Tensor,
        state: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step of the optimizer itself."""
        parameter = torch.nn.Parameter(theta.clone())
        optimizer = self.optimizer([parameter], **options)
        optimizer.param_groups[0].update(group)
        if state:
            optimizer.state[parameter] = {k: v.clone() for k, v in state.items()}
        parameter.grad = grad.clone()
        optimizer.step()
        after = {k: v.detach() for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
        return parameter.detach(), after
