"""What verifying a few examples by real runs is worth: share of the full truth's cost against agreement with it.

    python benchmarks/refinement.py --data DIR [--seeds 20] [--quick]

The cell of the paper's study in which influence scores agree least with the truth: ones against sevens, a network with
two hidden layers of eight units (200 training examples, 100 steps). Both estimates to begin with and both strategies,
at several budgets: the Jaccard index of the 10 + 10 extreme examples of what `refine` returns, mean and standard error
over seeds, and in brackets the share of the full truth's cost that was spent. ``--data`` is a folder with MNIST in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cases
import numpy as np
from lightning import Trainer

from lightning_sgdinf.estimators import AccumulatedInfluence, SgdInfluence
from lightning_sgdinf.evaluation import refinement_curve
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.tasks.lie.cell import Cell, Protocol, quiet, train
from lightning_sgdinf.truth import Halving, Screening
from lightning_sgdinf.zoo import BinaryData, DigitPair, mlp

BUDGETS = (0.1, 0.15, 0.25, 0.35, 0.5, 0.75)
ESTIMATES = {"sgd_influence": SgdInfluence(), "accumulated, evaluated": AccumulatedInfluence(evaluate=True)}
STRATEGIES = {"both ends": Screening(), "halving": Halving()}

Key = tuple[str, str, float]


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


def points(chosen: Cell, data: BinaryData, seed: int, budgets: Sequence[float]) -> dict[Key, tuple[float, float]]:
    """Cost and Jaccard index by estimate, strategy and budget."""
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    found: dict[Key, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        log = Path(folder) / "run.tlog"
        model = train(chosen, data, 1e-3, seed, log)
        arguments = model, data.train_dataloader(), data.val_dataloader()
        scores = {name: runner.run(*arguments, log=log, estimator=e) for name, e in ESTIMATES.items()}
        with runner.truth(*arguments, log=log) as truth:
            full = truth.measure().scores()
            for name, estimate in scores.items():
                for strategy, how in STRATEGIES.items():
                    for point in refinement_curve(estimate, truth, full, budgets=budgets, strategy=how):
                        found[name, strategy, point.budget] = point.cost, point.agreement.jaccard
    return found


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    cases.quiet()
    one, budgets = cell(chosen.data), BUDGETS[2:3] if chosen.quick else BUDGETS
    examples = one.source.read()
    found = []
    for seed in range(1 if chosen.quick else chosen.seeds):
        found.append(points(one, BinaryData(examples, size=200, batch_size=20, seed=seed), seed, budgets))
        print(seed, *(f"{jaccard:.2f}" for _, jaccard in found[-1].values()), flush=True)
    rows = []
    for name in ESTIMATES:
        for strategy in STRATEGIES:
            values = [np.array([f[name, strategy, b] for f in found]) for b in budgets]
            cells = [
                f"{v[:, 1].mean():.2f} ± {v[:, 1].std() / len(v) ** 0.5:.2f} ({v[:, 0].mean():.2f})" for v in values
            ]
            rows.append((name, strategy, *cells))
    table = cases.table(("estimate", "strategy", *(f"{budget:.0%}" for budget in budgets)), rows)
    print(table)
    return table


if __name__ == "__main__":
    main()
