from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.evaluation import detect

examples = st.lists(
    st.tuples(st.sampled_from([-1e6, -3.0, 0.0, 1e-9, 0.5, 50.0, 51.0, 1e6]), st.booleans()), min_size=2, max_size=15
).filter(lambda rows: len({corrupt for _, corrupt in rows}) == 2)


@given(examples)
def test_it_equals_counting_by_hand(rows: list[tuple[float, bool]]) -> None:
    harm = [h for h, _ in rows]
    corrupt = [j for j, (_, bad) in enumerate(rows) if bad]
    clean = [j for j in range(len(rows)) if j not in corrupt]
    detection = detect(torch.tensor(harm, dtype=torch.float64), corrupt)

    wins = sum((harm[i] > harm[j]) + 0.5 * (harm[i] == harm[j]) for i in corrupt for j in clean)
    assert detection.auroc == pytest.approx(wins / (len(corrupt) * len(clean)), abs=1e-6)
    assert detection.average_precision == pytest.approx(
        average_precision_score([bad for _, bad in rows], harm), abs=1e-6
    )
    order = sorted(range(len(rows)), key=lambda j: (-harm[j], j))
    assert detection.cumulative_hits.tolist() == [sum(j in corrupt for j in order[:m]) for m in range(len(rows) + 1)]
    assert detection.hits == sum(j in corrupt for j in order[: len(corrupt)])

    points = {(1.0, 0.0)}
    for threshold in set(harm):
        taken = [j for j in range(len(rows)) if harm[j] >= threshold]
        hits = sum(j in corrupt for j in taken)
        points.add((hits / len(taken), hits / len(corrupt)))
    curve = set(zip(detection.precision.round(5).tolist(), detection.recall.round(5).tolist(), strict=True))
    assert curve == {(round(p, 5), round(r, 5)) for p, r in points}


def test_large_scores_are_not_squashed_into_ties() -> None:
    harm = torch.tensor([100.0, 200.0, 300.0, 400.0], dtype=torch.float64)
    assert detect(harm, [2, 3]).auroc == 1.0
    assert detect(harm, [0, 1]).auroc == 0.0


def test_a_constant_ranking_is_chance() -> None:
    detection = detect(torch.zeros(10), [1, 2])
    assert detection.auroc == 0.5
    assert detection.average_precision == pytest.approx(0.2)
    assert (detection.corrupt, detection.total) == (2, 10)
    assert detection.precision.dtype == np.float64


@pytest.mark.parametrize("corrupt", [[], [0, 1, 2], [3], [-1], range(5)])
def test_ids_must_be_some_of_the_examples(corrupt) -> None:
    with pytest.raises(ConfigurationError, match="some but not all ids of 3"):
        detect(torch.zeros(3), corrupt)


def test_harm_must_be_a_finite_vector() -> None:
    with pytest.raises(ConfigurationError, match=r"shape \[N\]"):
        detect(torch.zeros(3, 1), [0])
    with pytest.raises(NonFiniteError, match="example 1"):
        detect(torch.tensor([0.0, float("nan"), 1.0]), [0])


def test_the_old_name_of_the_cumulative_hits_still_gives_them() -> None:
    detection = detect(torch.tensor([0.1, 0.3, 0.2]), [1])
    with pytest.warns(DeprecationWarning, match=r"Detection\.cumulative_hits"):
        assert detection.found is detection.cumulative_hits
