"""Runs and arguments that cannot be right are refused before the first score, with what to do instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_sgdinf import InfluenceRunner, Scores
from lightning_sgdinf.errors import (
    ConfigurationError,
    DataMismatchError,
    LogNotFoundError,
    ModelMismatchError,
    NonFiniteError,
    UnknownOptimizerError,
    UnsupportedRunError,
)
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Draw
from lightning_sgdinf.query import FunctionQuery
from tests.adjoint.cases import BY_NAME, Recorded, edited, record
from tests.adjoint.models import MODELS


@pytest.fixture(scope="module")
def run() -> Recorded:
    return record(BY_NAME["momentum"])


def score(run: Recorded, *, certificate: Any = "off", **more: Any) -> Scores:
    arguments = {"model": run.module, "train": run.train, "validation": run.validation, "log": run.log, **more}
    runner = InfluenceRunner(accelerator="cpu", certificate=certificate, progress=False)
    return runner.run(
        arguments["model"],
        arguments["train"],
        arguments["validation"],
        log=arguments["log"],
        query=arguments.get("query"),
    )


@pytest.mark.parametrize("optimizer", ["torch.optim.rprop.Rprop", "torch.optim.lbfgs.LBFGS", "torch.optim.Muon"])
def test_optimizers_without_a_rule(run: Recorded, optimizer: str) -> None:
    log = edited(run.log, header=replace(run.log.header, optimizer=optimizer))
    with pytest.raises(UnknownOptimizerError, match=f"no update rule for {optimizer}; known are .*RMSprop"):
        score(run, log=log)


# Another model -------------------------------------------------------------------------------------------------------


def test_a_model_with_other_names(run: Recorded) -> None:
    with pytest.raises(ModelMismatchError, match=r"'net\.0\.weight'.* that this one lacks; it has \['always"):
        score(run, model=MODELS["sometimes"].make())


def test_a_model_with_other_shapes(run: Recorded) -> None:
    model = run.module
    model.net[0] = torch.nn.Linear(6, 4)
    with pytest.raises(ModelMismatchError, match=r"net\.0\.weight.*\(4, 5\), this model \(4, 6\)"):
        score(run, model=model)


def test_a_model_without_a_recorded_buffer() -> None:
    normed = record(BY_NAME["batchnorm"])
    model = normed.module
    model.net[1] = torch.nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ModelMismatchError, match=r"buffer 'net\.1\.running_mean' that this model lacks"):
        score(normed, model=model)


def test_a_fresh_model_is_welcome_whatever_its_weights_and_dtype(run: Recorded) -> None:
    expected = score(run).values
    other = MODELS["mlp"].make().float().eval()
    assert torch.equal(score(run, model=other).values, expected)


# Another data set ----------------------------------------------------------------------------------------------------


def loader(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=4)


def test_a_shorter_data_set(run: Recorded) -> None:
    x, y = run.train.dataset.tensors
    with pytest.raises(
        DataMismatchError, match=r"TensorDataset with 12 examples, this data set \(TensorDataset\) has 11"
    ):
        score(run, train=loader(TensorDataset(x[:11], y[:11])))


@pytest.mark.parametrize("what", ["inputs", "labels", "order"])
def test_other_contents(run: Recorded, what: str) -> None:
    x, y = (t.clone() for t in run.train.dataset.tensors)
    if what == "inputs":
        x[2] += 1e-9
    elif what == "labels":
        y[2] = (y[2] + 1) % 3
    else:
        x, y = x.flip(0), y.flip(0)
    with pytest.raises(DataMismatchError, match=r"differs from the one trained on \(checksum [0-9a-f]{8} recorded"):
        score(run, train=loader(TensorDataset(x, y)))


class OwnRandomness(Dataset):
    """Random numbers from a generator that nobody records."""

    def __init__(self, run: Recorded) -> None:
        self.tensors = run.train.dataset.tensors
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(5, generator=self.generator, dtype=torch.float64)
        return self.tensors[0][i] + noise, self.tensors[1][i]


def test_a_data_set_with_random_numbers_of_its_own(run: Recorded) -> None:
    with pytest.raises(DataMismatchError, match="random numbers of its own"):
        score(run, train=loader(OwnRandomness(run)))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


def test_loaders_that_do_not_fit(run: Recorded) -> None:
    with pytest.raises(UnsupportedRunError, match="no map-style data set"):
        score(run, train=DataLoader(Stream()))
    with pytest.raises(ConfigurationError, match="no training data"):
        score(run, train=None)
    with pytest.raises(DataMismatchError, match="trained with 1 data loaders, got 2"):
        score(run, train=[run.train, run.train])
    with pytest.raises(ConfigurationError, match=r"expected one validation loader .* got 2"):
        score(run, validation=[run.validation, run.validation])


def test_a_run_without_ids_or_with_several_loaders_at_once(run: Recorded) -> None:
    step = run.log.step(8)
    micro = step.micro_batches[0]
    two = (micro.draws[0], Draw(loader=1, example_ids=micro.example_ids))
    for draws, what in (((), "no example ids"), (two, "examples from 2 loaders at once")):
        changed = replace(step, micro_batches=(replace(micro, draws=draws),))
        with pytest.raises(UnsupportedRunError, match=f"step 8 used {what}"):
            score(run, log=edited(run.log, steps={8: changed}))


# Numbers -------------------------------------------------------------------------------------------------------------


def test_nan_in_a_recorded_state_names_the_step(run: Recorded) -> None:
    state = run.log.state(3)
    state.params["net.0.bias"][1] = float("nan")
    with pytest.raises(NonFiniteError, match="training loss of step 3 is nan"):
        score(run, log=edited(run.log, states={3: state}))


def test_nan_at_the_end_is_a_query_without_value(run: Recorded) -> None:
    state = run.log.state(9)
    state.params["net.0.bias"][1] = float("nan")
    with pytest.raises(NonFiniteError, match="finite"):
        score(run, log=edited(run.log, states={9: state}))


def test_an_adjoint_that_overflows_names_the_step(run: Recorded) -> None:
    groups = tuple(replace(g, options={**g.options, "lr": 1e200}) for g in run.log.step(0).groups)
    steps = {t: replace(run.log.step(t), groups=groups) for t in range(6)}
    with pytest.raises(NonFiniteError, match=r"no longer finite at step \d: the run amplifies"):
        score(run, log=edited(run.log, steps=steps))


# Queries -------------------------------------------------------------------------------------------------------------


def test_a_query_that_does_not_depend_on_the_parameters(run: Recorded) -> None:
    def constant(model: Any, data: Any) -> Tensor:
        return sum(0 * p.sum() for p in model.parameters()) + 1.0

    with pytest.raises(ConfigurationError, match="query 'nothing' does not depend on the trained parameters"):
        score(run, query=FunctionQuery(constant, labels=("nothing",)))


def test_an_empty_validation_set(run: Recorded) -> None:
    x, y = run.validation.dataset.tensors
    with pytest.raises(ConfigurationError, match="validation set is empty"):
        score(run, validation=DataLoader(TensorDataset(x[:0], y[:0]), batch_size=4))


# Records and settings ------------------------------------------------------------------------------------------------


def test_a_run_that_says_it_cannot_be_replayed(run: Recorded) -> None:
    header = replace(run.log.header, replayable="manual optimization")
    with pytest.raises(UnsupportedRunError, match="cannot be replayed: manual optimization"):
        score(run, log=edited(run.log, header=header))


def test_a_run_without_steps(run: Recorded) -> None:
    empty = MemoryLog(header=run.log.header, steps=[], states={0: run.log.state(0)})
    with pytest.raises(UnsupportedRunError, match="no complete step"):
        score(run, log=empty)


def test_no_log(run: Recorded, tmp_path: Any) -> None:
    with pytest.raises(LogNotFoundError):
        score(run, log=tmp_path / "gone.tlog")


@pytest.mark.parametrize("wrong", [{"certificate": "maybe"}, {"precision": "8-bit"}])
def test_settings_that_are_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))}: expected"):
        InfluenceRunner(**wrong)


def test_another_precision_than_can_be_done_again(run: Recorded) -> None:
    header = replace(run.log.header, precision="transformer-engine")
    with pytest.raises(UnsupportedRunError, match="precision 'transformer-engine'; replay knows 32-true"):
        score(run, log=edited(run.log, header=header))
