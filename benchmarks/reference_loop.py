"""How much slower the per-example loop is: one gradient per example and a Hessian-vector product by double backward.

    python benchmarks/reference_loop.py [--rounds 3] [--quick]

The loop is Algorithm 2 of the SGD-influence paper written straightforwardly, with all states in memory, no data loader
and no checks. It is timed against a whole replay (reading the log, making the batches, fast certificate off), both per
step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cases
import torch
from cases import Case, Images, Seconds
from torch import Tensor, nn

from lightning_sgdinf.log import RunLog
from lightning_sgdinf.query import MeanLoss
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores


class ReferenceLoop:
    """The trajectory of a plain SGD run, in memory.

    Args:
        case: Makes the model.
        data: What it was trained on.
        log: Its record.
    """

    def __init__(self, case: Case, data: Images, log: Path) -> None:
        self.module = case.module()
        self.images, self.labels = data.train_set.images, data.train_set.labels
        self.val_images, self.val_labels = data.val_set.images, data.val_set.labels
        with RunLog.open(log) as record:
            self.steps = list(record.steps(0, len(record)))
            self.states = [record.state(i).params for i in range(len(record) + 1)]

    def scores(self) -> Tensor:
        """Score per training example, ``[N]``."""
        module, parameters = self.module, list(self.module.parameters())
        module.load_state_dict(self.states[-1], strict=False)
        u = list(torch.autograd.grad(self._loss(self.val_images, self.val_labels), parameters))
        slopes = torch.zeros(len(self.labels), dtype=torch.float64)
        for step, state in zip(reversed(self.steps), reversed(self.states[:-1]), strict=True):
            module.load_state_dict(state, strict=False)
            ids, rate = torch.tensor(step.example_ids), step.learning_rates[0]
            for i in ids.tolist():
                grads = torch.autograd.grad(self._loss(self.images[[i]], self.labels[[i]]), parameters)
                slopes[i] -= rate / len(ids) * sum(float((a * g).sum()) for a, g in zip(u, grads, strict=True))
            grads = torch.autograd.grad(self._loss(self.images[ids], self.labels[ids]), parameters, create_graph=True)
            inner = sum((a * g).sum() for a, g in zip(u, grads, strict=True))
            hessian = torch.autograd.grad(inner, parameters)
            u = [a - rate * h for a, h in zip(u, hessian, strict=True)]
        return -slopes

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.module(images), labels)


def row(case: Case, directory: Path, *, rounds: int) -> tuple[str, ...]:
    """One line of the table."""
    data, log = case.data(), directory / f"{case.name}.tlog"
    cases.fit(case, data, log=log)
    loop = ReferenceLoop(case, data, log)
    results: dict[str, Tensor] = {}

    def reference() -> Seconds:
        return cases.timed(lambda: results.__setitem__("loop", loop.scores()))

    def ours() -> Seconds:
        runner = InfluenceRunner(accelerator="cpu", progress=False, certificate="off")

        def run() -> None:
            scores: Scores = runner.run(case.module(), datamodule=data, log=log, query=MeanLoss())
            results["ours"] = scores.values[:, 0]

        return cases.timed(run)

    found = cases.interleaved({"loop": reference, "ours": ours}, rounds)
    cpu, wall = cases.ratio(found["loop"], found["ours"])
    gap = (results["loop"] - results["ours"]).abs().max() / results["ours"].abs().max()
    return case.name, f"{cpu:.1f} ({wall:.1f})", f"{float(gap):.0e}"


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    cases.quiet()
    steps = {"LogReg": 5} if chosen.quick else {"LogReg": 200, "MLP": 150, "MnistNet": 30}
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name, count in steps.items():
            case = replace(cases.CASES[name], steps=count)
            rows.append(row(case, Path(directory), rounds=1 if chosen.quick else chosen.rounds))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    found = cases.table(("model", "per-example loop / replay", "scores agree to"), rows)
    print(found)
    return found


if __name__ == "__main__":
    main()
