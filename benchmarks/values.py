"""Values of a hundred digits, a fifth of them with wrong labels: what they find, what they cost, what reuse saves.

Prints the tables of docs/results/valuation.md: ``python benchmarks/values.py --speed
--variances``. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder, baselines, estimators
from lightning_sgdinf.evaluation import datamodelling_score, random_subsets
from lightning_sgdinf.query import Accuracy, MeanLoss
from lightning_sgdinf.replay import CounterfactualRun
from lightning_sgdinf.valuation import (
    Banzhaf,
    BetaShapley,
    Gains,
    GradientShapley,
    KnnShapley,
    LeaveOneOut,
    Shapley,
)
from lightning_sgdinf.valuation.control import predicted_gains
from lightning_sgdinf.valuation.play import Play
from lightning_sgdinf.valuation.recorded import RecordedUtility
from lightning_sgdinf.valuation.schemes import EverySize, Orders, Reuse
from lightning_sgdinf.valuation.semivalues import shapley_sizes

EXAMPLES, WRONG, COUNTS = 100, 20, (10, 20, 30, 40, 50)


class Net(L.LightningModule):
    """Logistic regression, or a network of one hidden layer."""

    def __init__(self, hidden: int = 0, **options: Any) -> None:
        super().__init__()
        layers = [nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)] if hidden else [nn.Linear(64, 10)]
        self.layers, self.options = nn.Sequential(*layers), options

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), momentum=0.9, **self.options)


def digits(seed: int, wrong: int, count: int = EXAMPLES) -> tuple[TensorDataset, TensorDataset, TensorDataset, Tensor]:
    """Training, validation and test digits, and which training labels are wrong."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=g)
    x, y = x[order], y[order]
    flipped = torch.zeros(count, dtype=torch.bool)
    flipped[torch.randperm(count, generator=g)[:wrong]] = True
    other = (y[:count] + torch.randint(1, 10, (count,), generator=g)) % 10
    train = TensorDataset(x[:count], torch.where(flipped, other, y[:count]))
    return train, TensorDataset(x[1000:1300], y[1000:1300]), TensorDataset(x[1300:], y[1300:]), flipped


def recorded(folder: Path, net: Net, train: TensorDataset, *, epochs: int, batch: int, seed: int) -> dict[str, Any]:
    """Train and record."""
    L.seed_everything(seed, verbose=False)
    loader = DataLoader(train, batch_size=batch, shuffle=True)
    L.Trainer(
        max_epochs=epochs,
        callbacks=[TrajectoryRecorder(folder)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(net, loader)
    return {"model": net, "train_dataloaders": loader, "log": folder}


def auroc(harm: Tensor, wrong: Tensor) -> float:
    ranks = harm.argsort().argsort().double() + 1
    count = int(wrong.sum())
    return float((ranks[wrong].sum() - count * (count + 1) / 2) / (count * (len(harm) - count)))


def methods(folder: Path, seed: int) -> dict[str, tuple[Any, Any]]:
    """Name, estimator and query of everything that is compared."""
    orders, sizes = folder / f"orders_{seed}.h5", folder / f"sizes_{seed}.h5"
    of_loss = MeanLoss()
    shapley = Shapley(seed=seed, permutations=100)
    table: dict[str, tuple[Any, Any]] = {
        "Shapley, 25 orders": (replace(shapley, permutations=25, resume=orders), Accuracy()),
        "Shapley, 100 orders": (replace(shapley, resume=orders), Accuracy()),
        "Beta(16, 1), the same orders": (BetaShapley(seed=seed, permutations=100, resume=orders), Accuracy()),
        "Beta(4, 1), the same orders": (BetaShapley(seed=seed, alpha=4.0, permutations=100, resume=orders), Accuracy()),
        "Shapley, every size, 25": (
            replace(shapley, permutations=25, sampling="every_size", resume=sizes),
            Accuracy(),
        ),
        "Shapley, every size, 100": (replace(shapley, sampling="every_size", resume=sizes), Accuracy()),
        "Shapley of the loss, 100 orders": (shapley, of_loss),
        "Shapley of the loss, every size, 100": (replace(shapley, sampling="every_size"), of_loss),
        "Banzhaf, 2,000": (Banzhaf(seed=seed, coalitions=2000), Accuracy()),
        "Banzhaf, 9,900": (Banzhaf(seed=seed, coalitions=9900), Accuracy()),
        "Banzhaf of the loss, 2,000, control": (Banzhaf(seed=seed, coalitions=2000, control=Gains()), of_loss),
        "leave one out": (LeaveOneOut(), Accuracy()),
        "leave one out of the loss": (LeaveOneOut(), of_loss),
        "gradient Shapley, 100": (GradientShapley(seed=seed), Accuracy()),
        "KNN-Shapley, 5": (KnnShapley(features="inputs"), None),
    }
    for name in ("SgdInfluence", "NoHessian", "TracIn", "FinalParameters", "KohLiang", "AccumulatedInfluence"):
        table[name] = (getattr(estimators, name)(), of_loss)
    table["LastEpochs(1)"] = (estimators.LastEpochs(1), of_loss)
    for name in ("LossBaseline", "MarginBaseline", "AreaUnderMargin", "ConfidentLearning"):
        table[name] = (getattr(baselines, name)(), None)
    for name in ("LocalOutlierFactor", "IsolationForest", "OneClassSvm", "Autoencoder"):
        table[name] = (getattr(baselines, name)(), None)
    table["random"] = (baselines.RandomBaseline(seed=seed), None)
    return table


def cell(folder: Path, seed: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Everything of one seed: logistic regression from zero, forty steps on all examples."""
    train, validation, test, wrong = digits(seed, WRONG)
    net = Net(lr=0.5, weight_decay=1e-3)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    run = recorded(folder / f"run_{seed}.tlog", net, train, epochs=40, batch=EXAMPLES, seed=seed)
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    rows: dict[str, Any] = {}
    masks: list[Tensor] = []
    spent: dict[str, float] = {}
    for name, (estimator, query) in methods(folder, seed).items():
        if only and name not in only:
            continue
        began = time.process_time()
        try:
            scores = runner.run(**run, val_dataloaders=DataLoader(validation, 300), query=query, estimator=estimator)
        except Exception as error:
            print(seed, name, "gave nothing:", error, flush=True)
            continue
        spent[name] = time.process_time() - began
        harm = scores.harm()
        chosen = harm > 0
        order = scores.order()
        rows[name] = {
            "auroc": auroc(harm, wrong),
            "share": float(chosen.double().mean()),
            "precision": float(wrong[chosen].double().mean()) if bool(chosen.any()) else None,
            "recall": float(chosen[wrong].double().mean()),
            "seconds": spent[name],
            "notes": "" if scores.certificate is None else " ".join(scores.certificate.notes),
        }
        everybody = torch.ones(EXAMPLES, dtype=torch.bool)
        for ids in (order, order.flip(0)):
            masks += [everybody.index_fill(0, ids[:count], False) for count in COUNTS]
        masks += [(~everybody).index_fill(0, order.flip(0)[:count], True) for count in COUNTS]
        print(seed, name, {k: v for k, v in rows[name].items() if k != "notes"}, flush=True)
    with runner.open(**run, val_dataloaders=DataLoader(test, 500)) as opened:
        utility = RecordedUtility(opened, runner.bind(opened, Accuracy()))
        accuracy = utility.values(torch.stack([torch.ones(EXAMPLES, dtype=torch.bool), *masks]))[:, 0].tolist()
    for number, row in enumerate(rows.values()):
        part = accuracy[1 + 15 * number : 16 + 15 * number]
        row |= {"worst": part[:5], "best": part[5:10], "added": part[10:]}
    return {"seed": seed, "before": accuracy[0], "rows": rows}


def variance(folder: Path, *, lr: float, epochs: int, batch: int, wrong: int, seed: int = 0) -> dict[str, Any]:
    """Mean squared standard errors of as many trainings, of validation loss and accuracy of a logistic regression."""
    train, validation, _, _ = digits(seed, wrong)
    L.seed_everything(seed, verbose=False)
    run = recorded(folder / f"cv_{lr}_{epochs}_{wrong}.tlog", Net(lr=lr), train, epochs=epochs, batch=batch, seed=seed)
    run["val_dataloaders"] = DataLoader(validation, 300)
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    scores = runner.run(**run, estimator=estimators.SgdInfluence(divisor="reduced"))
    found: dict[str, Any] = {"lr": lr, "epochs": epochs, "batch": batch, "wrong": wrong}
    for part in (0.1, 0.5):
        sets = random_subsets(EXAMPLES, 100, part=part, seed=seed)
        truth = runner.counterfactuals(**run, leave_out=sets, divisor="reduced")
        found[f"datamodelling {part}"] = datamodelling_score(scores, truth).mean
    with runner.open(**run) as opened:
        query = runner.bind(opened, MeanLoss())
        utility = RecordedUtility(opened, query)
        began = time.process_time()
        gains = predicted_gains(Gains(), opened, query, utility.members)
        found["seconds of the walk"] = time.process_time() - began
        schemes: dict[str, Any] = {
            name: Orders(EXAMPLES, shapley_sizes, 0, name)  # type: ignore[arg-type]
            for name in ("uniform", "antithetic", "stratified")
        }
        schemes["every size"] = EverySize(EXAMPLES, shapley_sizes, 0, 0 * gains)
        schemes["every size, control"] = EverySize(EXAMPLES, shapley_sizes, 0, gains)
        schemes |= {"Banzhaf": Reuse(EXAMPLES, 0), "Banzhaf, control": Reuse(EXAMPLES, 0, gains=gains)}
        for name, scheme in schemes.items():
            played = Play(rounds=60 if "Banzhaf" not in name else 300).values(utility, scheme)
            assert played.standard_error is not None
            assert played.agreement is not None
            found[name] = {
                "variance": float(played.standard_error.square().mean()),
                "agreement": float(played.agreement.mean()),
                "trainings": played.trainings,
                "seconds": played.process_seconds,
            }
        query = runner.bind(opened, Accuracy())
        utility = RecordedUtility(opened, query)
        gains = predicted_gains(Gains(query=MeanLoss()), opened, query, utility.members)
        schemes = {"uniform": Orders(EXAMPLES, shapley_sizes, 0, "uniform")}
        schemes["every size"] = EverySize(EXAMPLES, shapley_sizes, 0, 0 * gains)
        schemes["every size, control"] = EverySize(EXAMPLES, shapley_sizes, 0, gains)
        for name, scheme in schemes.items():
            played = Play(rounds=60).values(utility, scheme)
            assert played.standard_error is not None
            found[f"accuracy, {name}"] = {"variance": float(played.standard_error.square().mean())}
    print(found, flush=True)
    return found


def speed(folder: Path, hidden: int, *, together: int = 13, alone: int = 12, turns: int = 3) -> dict[str, Any]:
    """Orders of 150 digits a core-minute, many trainings at once and one after another, in turn in one process."""
    train, validation, _, _ = digits(0, 0, count=150)
    L.seed_everything(0, verbose=False)
    run = recorded(folder / f"speed_{hidden}.tlog", Net(hidden, lr=0.1), train, epochs=10, batch=15, seed=0)
    runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    apart = 0.0
    with runner.open(**run, val_dataloaders=DataLoader(validation, 300)) as opened:
        query = runner.bind(opened, Accuracy())
        utility, again = RecordedUtility(opened, query), CounterfactualRun(opened, divisor="reduced")
        orders = Orders(150, shapley_sizes, 0, "uniform")
        utility.values(orders.coalitions(turns * together)[::10])  # what is made once, apart
        for turn in range(turns):
            coalitions = torch.cat([orders.coalitions(turn * together + r) for r in range(together)])
            began = time.process_time()
            values = utility.values(coalitions)
            seconds["together"].append((time.process_time() - began) / together)
            some = torch.linspace(0, 148, alone).long()
            began = time.process_time()
            single = torch.stack([query.value(again.run(weights=coalitions[i].double())) for i in some])
            seconds["alone"].append((time.process_time() - began) / alone * 149)
            apart = max(apart, float((single - values[some]).abs().max()))
    each = {name: sorted(times)[turns // 2] for name, times in seconds.items()}
    rates = {f"{name}, orders a minute": 60 / value for name, value in each.items()}
    row = {"hidden": hidden, **rates, "ratio": each["alone"] / each["together"], "apart": apart, "all": seconds}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("values"), help="a folder: one file per seed, one of variances"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=[], help="names of methods")
    parser.add_argument("--variances", action="store_true")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arguments.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for seed in arguments.seeds:
            one = cell(Path(name), seed, arguments.only)
            (arguments.out / f"seed_{seed}.json").write_text(json.dumps(one))
        if arguments.speed:
            (arguments.out / "speed.json").write_text(json.dumps([speed(Path(name), hidden) for hidden in (0, 16)]))
        if arguments.variances:
            settings: list[dict[str, Any]] = [
                {"lr": 0.02, "epochs": 5, "batch": 50, "wrong": 0},
                {"lr": 0.1, "epochs": 10, "batch": 20, "wrong": 20},
            ]
            rows = [variance(Path(name), **one) for one in settings]
            (arguments.out / "variances.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
