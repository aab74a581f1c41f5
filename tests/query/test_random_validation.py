"""A validation set that draws random numbers gives a query that is nevertheless a function of the model."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf import random_state
from lightning_sgdinf.query import ValidationData


class Masked(Dataset):
    """Masks from every global generator; that of torch is drawn in the default type, as many are."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        mask = torch.bernoulli(torch.full((4,), 0.5))
        return (i + 1) * mask.float() + float(np.random.rand()) + random.random()


def passes() -> ValidationData:
    return ValidationData(loader=DataLoader(Masked(), batch_size=2, shuffle=True), transfer=lambda batch: batch)


def everything(data: ValidationData) -> Tensor:
    return torch.cat([batch for batch, _, _ in data.batches()])


def test_every_pass_is_the_same_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first = everything(passes())
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert torch.equal(everything(passes()), first)
    assert len(first.unique()) > 6, "nothing was random"


def test_the_generators_are_left_as_they_were() -> None:
    before = random_state.capture()
    everything(passes())
    assert random_state.capture() == before
    next(iter(passes().batches()))  # a pass that is broken off
    assert random_state.capture() == before


def test_the_models_precision_does_not_change_the_masks() -> None:
    data, single = passes(), everything(passes())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(everything(data), single)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
