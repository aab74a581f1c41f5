"""Forecast against measured, on models of ten to a hundred million parameters.

    python benchmarks/scale.py [--quick] [--only transformer-10M resnet-11M transformer-50M lora-100M]

Each model is planned (`TrajectoryRecorder.plan`), then really trained for ten steps with the recorder on, and
replayed, with every state stored and with every fourth; each in a process of its own. Memory is by how much the largest
resident set exceeds that of model and data, for fit and replay alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import FitClock, quiet, table
from lightning.pytorch import LightningModule, Trainer, seed_everything
from memory import status
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, TrajectoryRecorder
from lightning_sgdinf.record.plan import make_run_plan

CLASSES, TOKENS = 10, 32
KEEPS = ("every_step", "every(4)")


class Transformer(nn.Module):
    """An encoder over tokens whose mean is classified."""

    def __init__(self, words: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class LowRank(nn.Module):
    """A frozen linear layer, and a trained product of two thin matrices beside it."""

    def __init__(self, frozen: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x))


def adapted(words: int, width: int, layers: int) -> nn.Module:
    """A frozen transformer with low-rank adapters in its feed-forward layers, and a trained head."""
    network = Transformer(words, width, layers).requires_grad_(False)
    for layer in network.encoder.layers:
        layer.linear1, layer.linear2 = LowRank(layer.linear1), LowRank(layer.linear2)
    network.head.requires_grad_(True)
    return network


class Residual(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        plain = before == after and stride == 1
        self.around = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.around(x))


def resnet18(width: int) -> nn.Module:
    """ResNet-18 for small images."""
    blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        for block in range(2):
            blocks.append(Residual(before, width << stage, 2 if stage and not block else 1))
            before = width << stage
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


class Module(LightningModule):
    """A classifier."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how it is trained, and on what.

    Attributes:
        network: Makes it.
        optimizer: Makes its optimizer.
        words: Of a vocabulary; 0 for images.
        batch_size: Examples per step.
        steps: Of the run.
        certified: Replay it with the default certificate, too, which takes minutes.
    """

    network: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    words: int = 0
    batch_size: int = 8
    steps: int = 10
    certified: bool = False

    def module(self) -> Module:
        """A fresh one, always of the same initial weights."""
        seed_everything(0, verbose=False)
        return Module(self.network(), self.optimizer)

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Training and validation data."""
        generator = torch.Generator().manual_seed(1)
        count = self.batch_size * (self.steps + 2)
        y = torch.randint(CLASSES, (count,), generator=generator)
        if self.words:
            x = torch.randint(self.words, (count, TOKENS), generator=generator)
        else:
            x = torch.randn(count, 3, 32, 32, generator=generator) + 0.2 * y[:, None, None, None]
        split = self.batch_size * self.steps
        order = torch.Generator().manual_seed(0)
        train = DataLoader(TensorDataset(x[:split], y[:split]), self.batch_size, shuffle=True, generator=order)
        return train, DataLoader(TensorDataset(x[split:], y[split:]), self.batch_size)


ADAM, MOMENTUM = partial(torch.optim.AdamW, lr=1e-4), partial(torch.optim.SGD, lr=0.01, momentum=0.9)
CASES: Mapping[str, Case] = {
    "transformer-10M": Case(partial(Transformer, 8000, 384, 4), ADAM, 8000, certified=True),
    "resnet-11M": Case(partial(resnet18, 64), MOMENTUM),
    "transformer-50M": Case(partial(Transformer, 16000, 640, 8), ADAM, 16000, batch_size=4),
    "lora-100M": Case(partial(adapted, 20000, 768, 12), ADAM, 20000, batch_size=4),
    "quick": Case(partial(Transformer, 100, 16, 1), ADAM, 100, steps=6),
}


def trainer(case: Case, *callbacks: Any) -> Trainer:
    """Of a fit without anything beside it."""
    return Trainer(
        max_epochs=1,
        max_steps=case.steps,
        accelerator="cpu",
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def child(name: str, what: str, keep: str, path: str) -> dict[str, Any]:
    """Plan, fit, record or replay; return the figures."""
    quiet()
    case = CASES[name]
    module, (train, validation) = case.module(), case.loaders()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set counts anew
    before, began, seconds = status("VmRSS"), time.perf_counter(), 0.0
    if what == "plan":
        plan = TrajectoryRecorder(path).plan(
            module, train, validation, steps=case.steps, trainer={"accelerator": "cpu"}, folder=str(Path(path).parent)
        )
        print(plan, file=sys.stderr, flush=True)
        return {
            "parameters": plan.costs.parameters,
            "fit": plan.training_seconds,
            "seconds": time.perf_counter() - began,
            **{
                p.keep: {"bytes": p.log_bytes, "replay": p.replay_seconds, "memory": (p.replay_bytes or 0) / 2**20}
                for p in _rows(plan, case.steps)
            },
        }
    if what in ("fit", "record"):
        clock = FitClock()
        recorders = [TrajectoryRecorder(path, keep=keep, overwrite=True)] if what == "record" else []
        trainer(case, clock, *recorders).fit(module, train)
        seconds = clock.seconds.wall
    else:
        runner = InfluenceRunner(accelerator="cpu", certificate=what, progress=False)  # type: ignore[arg-type]
        began = time.perf_counter()
        runner.run(module, train, validation, log=path)
        seconds = time.perf_counter() - began
    figures: dict[str, Any] = {"seconds": seconds, "memory": status("VmHWM") - before}
    if Path(path).exists():
        with RunLog.open(path) as log:
            figures["bytes"] = log.size_bytes
    return figures


def _rows(plan: Any, steps: int) -> Any:
    return make_run_plan(plan.costs, steps=steps, keeps=KEEPS).policies


def apart(name: str, what: str, keep: str, path: Path) -> dict[str, Any]:
    """The same, from a process of its own."""
    command = [sys.executable, __file__, "--child", name, what, keep, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows_of(name: str, folder: Path) -> list[tuple[str, ...]]:
    """The rows of a model."""
    plan = apart(name, "plan", "every_step", folder / "plan.tlog")
    fit = apart(name, "fit", "none", folder / "none.tlog")
    rows = []
    for keep in KEEPS:
        path = folder / "run.tlog"
        recorded = apart(name, "record", keep, path)
        walked = apart(name, "off", keep, path)
        certified = apart(name, "fast", keep, path) if keep == KEEPS[0] and CASES[name].certified else None
        forecast = plan[keep]
        rows.append(
            (
                f"{name}, {plan['parameters'] / 1e6:.1f} M trained",
                keep,
                _pair(forecast["bytes"] / 1e6, recorded["bytes"] / 1e6, "MB"),
                _pair(plan["fit"], recorded["seconds"], "s"),
                _pair(forecast["replay"], walked["seconds"], "s"),
                _pair(forecast["memory"], walked["memory"], "MiB"),
                "" if certified is None else f"{certified['seconds']:.1f} s, {certified['memory']:.0f} MiB",
                f"{fit['seconds']:.1f} s, {fit['memory']:.0f} MiB",
            )
        )
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return rows


def _pair(forecast: float, measured: float, unit: str) -> str:
    return f"{forecast:.4g} / {measured:.4g} {unit} ({100 * (forecast / measured - 1):+.0f} %)"


def main(arguments: Sequence[str] | None = None) -> str:
    """Print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[name for name in CASES if name != "quick"])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        print(json.dumps(child(*chosen.child)))
        return ""
    rows: list[tuple[str, ...]] = []
    for name in ["quick"] if chosen.quick else chosen.only:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(name, Path(folder))
    head = ("run", "keep", "log", "fit", "replay", "memory", "with certificate", "fit without recorder")
    found = table(head, rows)
    print(found)
    return found


if __name__ == "__main__":
    main()
