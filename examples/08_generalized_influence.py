"""Steps in some of the parameters when examples are left out: freezing, projecting, generalized influence.

    python examples/08_generalized_influence.py

The toy of Lyu et al. (arXiv:2312.05586): 500 of 4,000 targets are five times too large and of the wrong sign, two of
six parameters may move, and 10 bad examples are left out in each of 50 rounds. And the reason why networks need care:
the part of their Hessian's eigenvalues that are negative.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian

from lightning_sgdinf.curvature import Dense
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.updates.influence import (
    FreezingDirection,
    GeneralizedDirection,
    InfluenceProblem,
    ProjectingDirection,
)
from lightning_sgdinf.zoo import Digits

BAD, EACH = 500, 10
DIRECTIONS = {"freezing": FreezingDirection, "projecting": ProjectingDirection, "generalized": GeneralizedDirection}


class Squares:
    """The curvature of a mean of squares, as an influence problem asks for it."""

    def __init__(self, x: Tensor) -> None:
        self.matrix, self.examples = 2 * x.T @ x / len(x), len(x)

    def product(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix


def toy() -> dict[str, float]:
    """Mean squared error on the 3,500 good examples after all rounds, by direction."""
    torch.manual_seed(0)
    x = torch.rand(4000, 5).double()
    y = x.sum(1)
    y[:BAD] *= -5
    x = torch.cat([x @ torch.randn(5, 5).double(), torch.ones(4000, 1).double()], 1)
    start, two = torch.linalg.lstsq(x, y[:, None]).solution[:, 0], ParameterMask(torch.arange(6) < 2)

    errors = {"nothing": float((x[BAD:] @ start - y[BAD:]).square().mean())}
    for name, kind in DIRECTIONS.items():
        theta, direction = start.clone(), kind(damping=0.0, curvature="hessian", solver=Dense())
        for left_out in range(0, BAD, EACH):
            own, rest = x[left_out : left_out + EACH], x[left_out + EACH :]
            residuals = own @ theta - y[left_out : left_out + EACH]
            theta = theta + direction.solve(
                InfluenceProblem(
                    gradient=2 * own.T @ residuals / EACH,
                    share=EACH / len(rest),
                    mask=two,
                    retained=lambda _, rest=rest: Squares(rest),
                    forgotten=lambda _, own=own: Squares(own),
                )
            )
        errors[name] = float((x[BAD:] @ theta - y[BAD:]).square().mean())
    return errors


def negative_part(squared: bool, decay: float) -> float:
    """The part of the eigenvalues of a small trained network's Hessian that are negative."""
    torch.manual_seed(0)
    images, _ = Digits().read()
    x, y = images.images[:400].flatten(1).double(), images.labels[:400]
    net = nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10)).double()
    shapes = {n: p.shape for n, p in net.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes.values()])
        logits = functional_call(net, {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}, (x,))
        fit = (logits - F.one_hot(y, 10)).square().mean() if squared else F.cross_entropy(logits, y)
        return fit + decay * theta.norm() / 2

    theta = nn.utils.parameters_to_vector(net.parameters()).detach().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=0.5, momentum=0.9)
    for _ in range(100):
        theta.grad = None
        loss(theta).backward()
        optimizer.step()
    return float((torch.linalg.eigvalsh(hessian(loss)(theta.detach())) < 0).double().mean())


def main() -> None:
    print("error on the good examples:", ", ".join(f"{n} {e:.3f}" for n, e in toy().items()))
    for squared, name in ((True, "squared error"), (False, "cross entropy")):
        parts = ", ".join(f"{100 * negative_part(squared, decay):.0f} % with penalty {decay}" for decay in (0.0, 0.1))
        print(f"negative eigenvalues, {name}: {parts}")


if __name__ == "__main__":
    main()
