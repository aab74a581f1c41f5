"""Settings that code of others passes on to optimizers and loaders."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.tasks.constructors import check_module_optimizer, refusal


class Module(L.LightningModule):
    """Its optimizers are what it is given."""

    def __init__(self, make: Callable[[L.LightningModule], Any], *, layers: bool = True) -> None:
        super().__init__()
        self.make = make
        if layers:
            self.net = nn.Linear(2, 1)

    def configure_optimizers(self) -> Any:
        return self.make(self)


class Picky(torch.optim.Optimizer):
    """An optimizer that is not torch's own."""

    def __init__(self, params: Any, rate: float) -> None:
        if rate > 1:
            raise ValueError(f"rate of {rate} is too bold")
        super().__init__(params, {"rate": rate})


def sgd(module: L.LightningModule, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), **{"lr": 0.1, **settings})


REFUSED = [
    (lambda m: sgd(m, lr=-1), {"lr": -1}, r"^model\.lr=-1: Module\.configure_optimizers: Invalid learning rate: -1$"),
    (lambda m: sgd(m, lr=-1.5e-3), {"lr": -1.5e-3, "width": 4}, r"^model\.lr=-0\.0015: .*Invalid learning rate"),
    (lambda m: sgd(m, momentum=-2), {"lr": 0.1, "mu": -2}, r"^model\.mu=-2: .*Invalid momentum value: -2$"),
    (
        lambda m: sgd(m, lr=-1),
        {"lr": -1, "other": -1.0},
        r"^model: .*Invalid.*\(Module was given lr=-1, other=-1\.0\)$",
    ),
    (lambda m: sgd(m, nesterov=True), {"nesterov": True}, r"^model: .*Nesterov.*\(Module was given nesterov=True\)$"),
    (lambda m: torch.optim.Adam(m.parameters(), betas=(0.9, 2.0)), {"beta": 2}, r"^model\.beta=2: .*Invalid beta"),
    (lambda m: Picky(m.parameters(), 3.0), {"rate": 3}, r"^model\.rate=3: .*rate of 3\.0 is too bold$"),
    (
        lambda m: torch.optim.lr_scheduler.OneCycleLR(sgd(m), max_lr=0.1, total_steps=-7),
        {"steps": -7},
        r"^model\.steps=-7: .*total_steps, but got -7$",
    ),
]


@pytest.mark.parametrize(("make", "settings", "says"), REFUSED)
def test_settings_that_an_optimizer_refuses_are_named(make: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        check_module_optimizer(Module(make), {"_target_": "mine.Net", **settings})
    assert re.search(says, str(told.value)), told.value


def needs_a_trainer(module: L.LightningModule) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.1 / module.trainer.max_epochs)


def needs_setup(module: L.LightningModule) -> Any:
    return torch.optim.SGD(module.head.parameters(), lr=0.1)  # type: ignore[union-attr,operator]


def of_layers_to_come(module: L.LightningModule) -> Any:
    return torch.optim.SGD([p for name, p in module.named_parameters() if name.startswith("head")], lr=0.1)


@pytest.mark.parametrize("make", [sgd, needs_a_trainer, needs_setup, of_layers_to_come])
@pytest.mark.parametrize("layers", [True, False])
def test_what_cannot_be_judged_yet_is_left_to_the_fit(make: Any, layers: bool) -> None:
    check_module_optimizer(Module(make, layers=layers), {"_target_": "mine.Net", "lr": -1})


def test_what_it_draws_is_put_back_by_whoever_asks() -> None:
    """The job asks within `random_state.preserved`, and its fit is seeded: the run is the same to the last bit."""

    def draws(module: L.LightningModule) -> Any:
        return sgd(module, lr=float(torch.rand(()) + np.random.rand() + random.random()))

    before = random_state.capture()
    with random_state.preserved():
        check_module_optimizer(Module(draws), {"_target_": "mine.Net"})
        assert random_state.capture() != before, "the test is degenerate"
    assert random_state.capture() == before


class Data(L.LightningDataModule):
    """Its loaders are what it is given."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> Any:
        return self.make()


def of_size(size: int) -> Callable[[], Any]:
    return lambda: DataLoader(TensorDataset(torch.zeros(3)), batch_size=size)


def fails() -> Any:
    raise ValueError("batch_size=0 is a word in an error of another kind")


@pytest.mark.parametrize(
    ("make", "settings", "says"),
    [
        (
            of_size(0),
            {"batch_size": 0, "seed": 0},
            r"^dataset\.batch_size=0: Data\.train_dataloader: batch_size",
        ),
        (of_size(-4), {"size": -4, "seed": 0}, r"^dataset\.size=-4: .* but got batch_size=-4$"),
        (
            lambda: RandomSampler(TensorDataset(torch.zeros(0))),
            {"first": 0, "seed": 0},
            r"^dataset: .*num_samples=0 \(Data was given first=0, seed=0\)$",
        ),
    ],
)
def test_settings_that_a_loader_refuses_are_named(make: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="should be a positive") as raised:
        Data(make).train_dataloader()
    told = refusal(raised.value, {"dataset": {"_target_": "mine.Data", **settings}, "model": {"batch_size": 0}})
    assert re.search(says, str(told)), told


@pytest.mark.parametrize("make", [Data(fails).train_dataloader, of_size(0), lambda: 1 / 0])
def test_other_errors_stay_what_they_are(make: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)) as raised:
        make()
    assert refusal(raised.value, {"dataset": {"batch_size": 0}}) is None
