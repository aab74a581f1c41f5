"""How members answer together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lightning_sgdinf.ensembles import aggregate
from lightning_sgdinf.errors import ConfigurationError


def test_majority_breaks_ties_by_the_mean_softmax_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 500, 3, generator=generator, dtype=torch.float64) * 3
    shares = aggregate(outputs, "majority")
    ties = 0
    for n in range(500):
        logits = outputs[:, n].numpy()
        votes = Counter(int(row.argmax()) for row in logits)
        leaders = [c for c, v in votes.items() if v == max(votes.values())]
        ties += len(leaders) > 1
        mean = np.mean([np.exp(r - r.max()) / np.exp(r - r.max()).sum() for r in logits], 0)
        assert int(shares[n].argmax()) == max(leaders, key=lambda c: mean[c])
    assert ties > 50
    torch.testing.assert_close(shares.sum(1), torch.ones(500, dtype=torch.float64))


def test_means() -> None:
    outputs = torch.tensor([[[0.0, 0.0]], [[4.0, 0.0]]], dtype=torch.float64)
    e = np.exp
    mean = (0.5 + e(4) / (e(4) + 1)) / 2
    torch.testing.assert_close(aggregate(outputs, "mean_softmax")[0, 0].item(), mean)
    torch.testing.assert_close(aggregate(outputs, "mean_logits")[0, 0].item(), e(2) / (e(2) + 1))
    torch.testing.assert_close(aggregate(outputs[:, :, 0], "mean"), torch.tensor([2.0], dtype=torch.float64))


def test_refusals() -> None:
    with pytest.raises(
        ConfigurationError, match="expected one of mean_softmax, majority, mean_logits, mean, got 'vote'"
    ):
        aggregate(torch.zeros(2, 3, 4), "vote")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"logits \[n, C\], got outputs of shape \[3\].*aggregation='mean'"):
        aggregate(torch.zeros(2, 3), "majority")
