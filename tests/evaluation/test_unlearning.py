"""The judge of unlearned models, and membership over many runs, against sums by hand and scipy's densities."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import (
    BackdoorJudge,
    UnlearningJudge,
    margin_divergence,
    membership_accuracy,
    predict,
)
from lightning_sgdinf.testing.fingerprints import host_fingerprint
from lightning_sgdinf.updates import state_of


class Table(nn.Module):
    """Logits looked up by example: a model is its table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.drop = nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.drop(self.logits[ids])


def tables(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [2 * torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
REST = [(torch.tensor([0, 1]), LABELS[:2]), (torch.tensor([2, 3]), LABELS[2:4])]
GONE = [(torch.tensor([4, 5, 6]), LABELS[4:])]


def by_hand(p: Tensor, q: Tensor, ids: range) -> tuple[float, float, float]:
    right, loss, divergence = 0, 0.0, 0.0
    for i in ids:
        exact, own = ([math.exp(v) / sum(math.exp(w) for w in t[i].tolist()) for v in t[i].tolist()] for t in (p, q))
        right += own.index(max(own)) == int(LABELS[i])
        loss -= math.log(own[int(LABELS[i])])
        divergence += sum(a * math.log(a / b) for a, b in zip(exact, own, strict=True))
    return right / len(ids), loss / len(ids), divergence / len(ids)


def test_measures_are_means_over_the_test_examples() -> None:
    exact, own, *fresh = tables(4)
    model = Table(exact).train()
    before = host_fingerprint(model)
    states = [state_of(Table(t)) for t in (exact, own, *fresh)]
    judge = UnlearningJudge(model, REST, GONE, exact=states[0], fresh=states[2:])
    found = judge.judge(states[1])
    kept, gone = by_hand(exact, own, range(4)), by_hand(exact, own, range(4, 7))
    assert (found.rest_accuracy, found.forgotten_accuracy) == (kept[0], gone[0])
    assert (found.rest_loss, found.forgotten_loss) == pytest.approx((kept[1], gone[1]), rel=1e-12)
    assert (found.rest_divergence, found.forgotten_divergence) == pytest.approx((kept[2], gone[2]), rel=1e-12)
    assert found.f1 == pytest.approx(2 * kept[0] * (1 - gone[0]) / (kept[0] + 1 - gone[0]))
    floors = [[by_hand(exact, t, ids)[2] for t in fresh] for ids in (range(4), range(4, 7))]
    assert judge.floor == pytest.approx(tuple(sum(f) / 2 for f in floors), rel=1e-12)
    itself = judge.judge(states[0])
    assert (itself.rest_divergence, itself.forgotten_divergence) == (0, 0)
    assert host_fingerprint(model) == before
    counts = judge.confusion(states[1])
    assert counts.tolist() == [
        [sum(int(LABELS[i]) == a and int(own[i].argmax()) == b for i in range(7)) for b in range(3)] for a in range(3)
    ]


def test_margins_are_logits_of_the_labels_probability() -> None:
    (table,) = tables(1)
    margins = predict(Table(table), REST).margins
    p = table.softmax(1)[range(4), LABELS[:4]]
    assert torch.allclose(margins, (p / (1 - p)).log(), rtol=1e-10)


def test_a_sure_model_is_no_division_by_zero() -> None:
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]]).double().expand(7, 3)
    judge = UnlearningJudge(Table(sure), REST, GONE, exact=state_of(Table(sure)))
    assert judge.floor is None
    assert judge.judge(state_of(Table(torch.zeros(7, 3).double()))).rest_divergence == pytest.approx(math.log(3))


def test_a_backdoor_is_judged_by_true_labels_and_by_the_attackers() -> None:
    exact, own = tables(2)
    judge = BackdoorJudge(Table(exact), REST, GONE, target=2, exact=state_of(Table(exact)))
    found = judge.judge(state_of(Table(own)))
    assert found.clean_accuracy == by_hand(exact, own, range(4))[0]
    assert (found.triggered_accuracy, found.divergence) == pytest.approx(by_hand(exact, own, range(4, 7))[::2])
    assert found.attack_rate == float((own[4:].argmax(1) == 2).double().mean())


def test_bad_input_is_refused() -> None:
    (table,) = tables(1)
    with pytest.raises(ConfigurationError, match="empty"):
        predict(Table(table), [])
    with pytest.raises(ConfigurationError, match="whole labels"):
        predict(Table(table), [(torch.tensor([0]), torch.tensor([0.5]))])
    with pytest.raises(NonFiniteError):
        predict(Table(table * torch.nan), REST)
    for measure in (margin_divergence, membership_accuracy):
        with pytest.raises(ConfigurationError, match="models"):
            measure(torch.zeros(1, 4), torch.zeros(5, 4))
        with pytest.raises(ConfigurationError, match="same examples"):
            measure(torch.zeros(5, 4), torch.zeros(5, 3))


def test_divergence_of_margins_is_that_of_normals() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    unlearned = 1 + 2 * torch.randn(9, 2, generator=generator, dtype=torch.float64)
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64).numpy()
    for found, own, other in zip(margin_divergence(exact, unlearned), exact.T, unlearned.T, strict=True):
        p, q = (norm(float(m.mean()), float(m.std())) for m in (own, other))
        expected = (p.pdf(grid) * (p.logpdf(grid) - q.logpdf(grid))).sum() * (grid[1] - grid[0])
        assert float(found) == pytest.approx(expected, rel=1e-6)
    assert margin_divergence(exact, exact).abs().max() < 1e-12


def test_membership_is_told_by_likelihoods_of_the_others() -> None:
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    unlearned = torch.randn(4, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 1.0, 50.0])
    found = membership_accuracy(exact, unlearned)
    for example in range(3):
        shares = []
        for own, other in ((exact, unlearned), (unlearned, exact)):
            values, against = own[:, example].numpy(), other[:, example].numpy()
            right = 0
            for i, value in enumerate(values):
                rest = [v for j, v in enumerate(values) if j != i]
                mean = sum(rest) / len(rest)
                spread = (sum((v - mean) ** 2 for v in rest) / (len(rest) - 1)) ** 0.5
                right += norm.pdf(value, mean, spread) > norm.pdf(value, against.mean(), against.std(ddof=1))
            shares.append(right / len(values))
        assert float(found[example]) == pytest.approx(sum(shares) / 2)
    assert found[2] == 1
