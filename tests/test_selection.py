from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_sgdinf.cleansing import Selection, Trial
from lightning_sgdinf.errors import ConfigurationError


def test_numbers_of_any_kind_become_plain_ones() -> None:
    selection = Selection(drop=tuple(torch.tensor([4, 2])), relabel={np.int64(3): torch.tensor(1)})
    assert selection == Selection(drop=(4, 2), relabel={3: 1})
    assert all(type(j) is int for j in (*selection.drop, *selection.relabel, *selection.relabel.values()))
    assert len(selection) == 3


def test_weights_are_zero_where_dropped() -> None:
    weights = Selection(drop=(3, 0), relabel={1: 2}).weights(5)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert Selection().weights(2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"drop": (-1,)},
        {"drop": (1.5,)},
        {"drop": ("a",)},
        {"drop": (True, False)},
        {"relabel": {-1: 0}},
        {"relabel": {0: -1}},
        {"relabel": {0: 0.5}},
    ],
)
def test_refuses_what_is_no_id_or_label(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="expected a whole number from 0 on"):
        Selection(**arguments)


def test_refuses_ids_that_occur_twice() -> None:
    with pytest.raises(ConfigurationError, match=r"\[7\] more than once"):
        Selection(drop=(7, 1, 7))
    with pytest.raises(ConfigurationError, match=r"\[2\] are both dropped and relabelled"):
        Selection(drop=(2,), relabel={2: 0})


@pytest.mark.parametrize("selection", [Selection(drop=(1, 5)), Selection(relabel={5: 0})])
def test_check_names_ids_outside_the_training_set(selection: Selection) -> None:
    selection.check(6)
    with pytest.raises(ConfigurationError, match=r"below 5.*got \[5\]"):
        selection.check(5)
    with pytest.raises(ConfigurationError, match=r"below 5"):
        selection.weights(5)


def test_survives_json() -> None:
    selection = Selection(drop=(2, 9), relabel={4: 1, 3: 0}, reason="why", trace=(Trial(0, 0.5), Trial(2, 0.25)))
    again = Selection.from_json(json.loads(json.dumps(selection.to_json())))
    assert again == selection
    assert list(again.relabel) == [4, 3]
