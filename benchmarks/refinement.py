"""What verifying a few examples by real runs is worth: share of the full truth's cost against agreement with it.

    python benchmarks/refinement.py --data DIR [--seeds 20] [--results FILE] [--figure FILE] [--quick]

The cell of the paper's study in which influence scores agree least with the truth: ones against sevens, a network with
two hidden layers of eight units (200 training examples, 100 steps). Both estimates to begin with and both strategies,
at several budgets: the Jaccard index of the 10 + 10 extreme examples of what `refine` returns, mean and standard error
over seeds, and in brackets the share of the full truth's cost that was spent. ``--data`` is a folder with MNIST in it.

All runs are taken once per seed, with a stop where `Halving` compares them; the strategies are then given what they ask
for, and the steps that it took are counted. ``--results`` keeps the points of every seed and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from lightning_sgdinf.estimators import AccumulatedInfluence, SgdInfluence
from lightning_sgdinf.evaluation import jaccard_of_extremes
from lightning_sgdinf.refinement import Halving, Screening
from lightning_sgdinf.refinement.forecast import forecast
from lightning_sgdinf.refinement.refine import Refinement
from lightning_sgdinf.report.style import dress, new_figure, series, to_png
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.studies.agreement.cell import Cell, Protocol, quiet, train
from lightning_sgdinf.truth import Counterfactuals
from lightning_sgdinf.truth.plan import Plan, make_plan
from lightning_sgdinf.zoo import BinaryData, DigitPair, mlp

BUDGETS = (0.1, 0.15, 0.25, 0.35, 0.5, 0.75)
ESTIMATES = {"SGD-influence": SgdInfluence(), "ACC-SGD-IE": AccumulatedInfluence(evaluate=True)}
STRATEGIES = {"both ends": Screening(), "halving": Halving()}

Points = Mapping[str, Sequence[tuple[float, float]]]
"""By estimate and strategy: cost and Jaccard index at each budget."""


def cell(data: Path) -> Cell:
    """Ones against sevens, a network."""
    trainer = partial(
        Trainer, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    return Cell(
        dataset="mnist_lie",
        model="dnn",
        source=DigitPair(data, digits=(1, 7), skip=5000),
        network=partial(mlp, hidden=(8, 8)),
        protocol=Protocol(lr=0.1, decay=False, epochs=10, batch_size=20, penalty=1e-3),
        size=200,
        trainer=trainer,
        runner=partial(InfluenceRunner, accelerator="cpu"),
    )


@dataclass
class Remembered:
    """Runs that were taken before; see `lightning_sgdinf.truth.runs.Runs`."""

    known: Known
    numbers: list[int]
    position: int = 0
    steps_taken: int = 0

    def advance(self, stop: int, count: Callable[[int], object]) -> None:
        """Count the steps."""
        begun = np.maximum(self.known.plan.first[self.numbers], self.position)
        count(int(np.maximum(stop - begun, 0).sum()))
        self.position = stop

    def values(self) -> tuple[Tensor, Tensor]:
        """What they came to."""
        return self.known.at[self.position][self.numbers], torch.zeros(1)

    def select(self, numbers: Sequence[int]) -> None:
        """Go on with these."""
        self.numbers = [i for i in self.numbers if i in set(numbers)]


@dataclass(frozen=True)
class Known:
    """Every run of a plan: forecasts at some steps, the change of the query at the end, float64 ``[N, 1]`` each."""

    plan: Plan
    at: Mapping[int, Tensor]

    @classmethod
    def of(cls, truth: Counterfactuals, stops: Sequence[int]) -> Known:
        """Take all runs, with stops on the way."""
        plan = make_plan(truth.log, truth.examples, None)
        contest = list(truth.chunks(plan, range(truth.examples)))
        at = {stop: torch.zeros(truth.examples, 1, dtype=torch.float64) for stop in (*stops, plan.stop)}
        for stop, found in at.items():
            for runs in contest:
                runs.advance(stop, lambda steps: None)
            values = [runs.values()[0] for runs in contest] if stop == plan.stop else forecast(truth, contest)
            for runs, own in zip(contest, values, strict=True):
                found[runs.numbers] = own
        return cls(plan, at)

    def chunks(self, plan: Plan, numbers: Sequence[int]) -> Iterator[Remembered]:
        """In one."""
        yield Remembered(self, plan.ordered(numbers))

    def point(self, estimate: Tensor, strategy: Any, budget: float) -> tuple[float, float]:
        """Cost and Jaccard index of an estimate that is refined."""

        def remembered(truth: Known, contest: Sequence[Remembered]) -> list[Tensor]:
            return [truth.at[runs.position][runs.numbers] for runs in contest]

        nothing = torch.zeros(len(estimate), dtype=torch.bool)
        race = Refinement(self, self.plan, estimate.clone(), nothing, 0, forecast=remembered)  # type: ignore[arg-type]
        strategy.spend(race, budget)
        true = self.at[self.plan.stop]
        jaccard = jaccard_of_extremes(race.values[:, 0].numpy(), true[:, 0].numpy(), k=10)
        return race.steps / int(self.plan.cost.sum()), jaccard


def points(chosen: Cell, data: BinaryData, seed: int, budgets: Sequence[float]) -> Points:
    """One seed's."""
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    with tempfile.TemporaryDirectory() as folder, quiet():
        log = Path(folder) / "run.tlog"
        model = train(chosen, data, 1e-3, seed, log)
        arguments = model, data.train_dataloader(), data.val_dataloader()
        estimates = {name: runner.run(*arguments, log=log, estimator=e).values for name, e in ESTIMATES.items()}
        with runner.truth(*arguments, log=log) as truth:
            known = Known.of(truth, [round(rung * len(truth.log)) for rung in Halving().rungs])
    return {
        f"{name}, {strategy}": [known.point(values, how, budget) for budget in budgets]
        for name, values in estimates.items()
        for strategy, how in STRATEGIES.items()
    }


def figure(found: Sequence[Points], file: Path) -> None:
    """Cost against Jaccard index, means over seeds with their standard errors."""
    drawn = new_figure(5.2, 3.6)
    axes = drawn.subplots()
    for number, name in enumerate(found[0]):
        values = np.array([one[name] for one in found])
        mean, error = values.mean(0), values.std(0) / len(values) ** 0.5
        axes.errorbar(mean[:, 0], mean[:, 1], yerr=error[:, 1], label=name, capsize=2, **series(number))
    axes.legend(frameon=False, fontsize=8)
    dress(axes, x="share of the full truth's cost", y="Jaccard index of the extremes")
    file.write_bytes(to_png(drawn))


def table(found: Sequence[Points], budgets: Sequence[float]) -> str:
    """A row per estimate and strategy, a column per budget."""
    rows = []
    for name in found[0]:
        values = np.array([one[name] for one in found])
        cost, mean, error = values[:, :, 0].mean(0), values[:, :, 1].mean(0), values[:, :, 1].std(0)
        error = error / len(values) ** 0.5
        rows.append((name, *(f"{m:.2f} ± {e:.2f} ({c:.2f})" for m, e, c in zip(mean, error, cost, strict=True))))
    return cases.table(("estimate and strategy", *(f"{100 * budget:.0f} %" for budget in budgets)), rows)


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    cases.quiet()
    one, budgets = cell(chosen.data), BUDGETS[2:3] if chosen.quick else BUDGETS
    done: dict[str, Points] = {}
    if chosen.results is not None and chosen.results.is_file():
        done = json.loads(chosen.results.read_text())
    examples = one.source.read()
    for seed in range(1 if chosen.quick else chosen.seeds):
        if str(seed) not in done:
            done[str(seed)] = points(one, BinaryData(examples, size=200, batch_size=20, seed=seed), seed, budgets)
            print(seed, *(f"{jaccard:.2f}" for line in done[str(seed)].values() for _, jaccard in line), flush=True)
            if chosen.results is not None:
                chosen.results.write_text(json.dumps(done))
    found = list(done.values())
    if chosen.figure is not None:
        figure(found, chosen.figure)
    text = table(found, budgets)
    print(text)
    return text


if __name__ == "__main__":
    main()
