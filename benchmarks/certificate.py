"""Calibration of the certificate's trust: what it says by default against all examples really left out.

    python benchmarks/certificate.py [--data-dir DATA] [--cache runs/certificate] [--seed 0] [--shift 0]
        [--tuning 7 1] [--output docs/results/certificate.md] [--certify-anew]

Each of 42 runs trains on 100 examples (every tenth with a wrong label), is scored with the default certificate, and is
then trained again without each of its examples. What is done is kept in the cache, so that a study that was stopped
goes on. The same grid with another ``--seed`` and ``--shift`` (which gives each model other lengths of training) is
another study: one was used to build the method, another is what is reported. ``--certify-anew`` scores kept runs again
and keeps their measured truth, which does not depend on what a certificate may spend.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.certificate.trust import CERTAIN
from lightning_sgdinf.checks.agreement import agreement, spread_sample
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.zoo import Adult, Digits, Mnist

EXAMPLES, HELD_OUT, BATCH = 100, 200, 20
EPOCHS = (5, 15, 60)
OFF = 0.1
"""A figure that differs from the truth by more is off."""

Rates = tuple[float, float, float]
MODELS: Mapping[str, tuple[str, Rates]] = {
    "logistic regression": ("sgd", (0.05, 0.2, 0.8)),
    "mlp, tanh": ("momentum", (0.01, 0.05, 0.2)),
    "mlp, relu": ("momentum", (0.01, 0.05, 0.2)),
    "cnn, tanh": ("momentum", (0.01, 0.03, 0.1)),
    "cnn, relu": ("momentum", (0.01, 0.03, 0.1)),
    "transformer, gelu": ("adam", (1e-3, 3e-3, 1e-2)),
    "transformer, relu": ("adam", (1e-3, 3e-3, 1e-2)),
}
"""Optimizer and learning rates of each model."""
GRID: Mapping[str, tuple[str, ...]] = {
    "digits": tuple(MODELS),
    "adult": ("logistic regression", "mlp, tanh", "mlp, relu"),
    "fashion": ("logistic regression", "mlp, relu", "cnn, tanh", "cnn, relu"),
}
"""Models of each data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run of the study."""

    data: str
    model: str
    rate: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """A name for tables and files."""
        return f"{self.data}, {self.model}, lr {self.rate:g}, {self.epochs} epochs, seed {self.seed}"


def settings(seed: int, shift: int) -> Iterator[Setting]:
    """The runs of a study: every model at each of its rates, lengths of training by turns."""
    number = 0
    for data, models in GRID.items():
        for model in models:
            for place, rate in enumerate(MODELS[model][1]):
                epochs = EPOCHS[(place + number + shift) % len(EPOCHS)]
                yield Setting(data=data, model=model, rate=rate, epochs=epochs, seed=seed)
            number += 1


class Transformer(nn.Module):
    """Rows of an image as tokens, one layer of attention, the mean of the tokens."""

    def __init__(self, width: int, tokens: int, classes: int, activation: Any) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(width, 16), nn.Parameter(0.02 * torch.randn(tokens, 16))
        self.layer = nn.TransformerEncoderLayer(
            16, 2, dim_feedforward=32, dropout=0.0, activation=activation, batch_first=True, bias=False
        )
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, 1, H, W]`` to logits."""
        return self.head(self.layer(self.embed(x.flatten(1, 2)) + self.place).mean(1))


def network(model: str, shape: Sequence[int], classes: int) -> nn.Module:
    """Build a model for inputs of a shape."""
    kind, _, activation = model.partition(", ")
    bend = {"": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}[activation]
    width = math.prod(shape)
    if kind == "logistic regression":
        return nn.Sequential(nn.Flatten(), nn.Linear(width, classes))
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 16), bend(), nn.Linear(16, classes))
    if kind == "cnn":
        convolutions = (nn.Conv2d(1, 6, 3, padding=1), bend(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1), bend())
        return nn.Sequential(
            *convolutions, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * (shape[1] // 4) * (shape[2] // 4), classes)
        )
    return Transformer(shape[2], shape[1], classes, activation)


@functools.cache
def examples(data: str, folder: str) -> tuple[Tensor, Tensor]:
    """All inputs and classes of a data set."""
    if data == "digits":
        images = Digits().read()[0]
        return images.images, images.labels
    if data == "fashion":
        images = Mnist(folder, variant="fashion-mnist", download=False).read()[0]
        small = nn.functional.avg_pool2d(images.images[:4000].float(), 2)
        return small, images.labels[:4000]
    people = Adult(folder, download=False).read()
    inputs = torch.as_tensor(np.asarray(people.inputs), dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-6), torch.as_tensor(np.asarray(people.labels)).long()


def loaders(setting: Setting, folder: str) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    """The examples to train on, those to ask about, and the number of classes."""
    inputs, labels = examples(setting.data, folder)
    classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(1000 + setting.seed)
    chosen = torch.randperm(len(inputs), generator=generator)[: EXAMPLES + HELD_OUT]
    x, y = inputs[chosen], labels[chosen].clone()
    y[: EXAMPLES // 10] = (y[: EXAMPLES // 10] + 1) % classes
    order = torch.Generator().manual_seed(setting.seed)
    train = TensorDataset(x[:EXAMPLES], y[:EXAMPLES])
    held_out = TensorDataset(x[EXAMPLES:], y[EXAMPLES:])
    return (
        DataLoader(train, batch_size=BATCH, shuffle=True, generator=order),
        DataLoader(held_out, batch_size=HELD_OUT),
        classes,
    )


class Module(LightningModule):
    """A classifier as one writes it by hand."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross entropy."""
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As the setting has it."""
        return self.optimizer(self.parameters())


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}


def fitted(setting: Setting, folder: str, log: Path) -> tuple[Module, DataLoader[Any], DataLoader[Any]]:
    """Train and record."""
    train, held_out, classes = loaders(setting, folder)
    seed_everything(setting.seed, verbose=False)
    shape = train.dataset[0][0].shape
    optimizer = functools.partial(OPTIMIZERS[MODELS[setting.model][0]], lr=setting.rate)
    module = Module(network(setting.model, shape, classes), optimizer)
    trainer = Trainer(
        max_epochs=setting.epochs,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(log)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, train)
    return module, train, held_out


def measured(setting: Setting, folder: str) -> dict[str, Any]:
    """Scores of a run, the default certificate, and what leaving out each of its examples really does."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "run.tlog"
        module, train, held_out = fitted(setting, folder, log)
        runner = InfluenceRunner(accelerator="cpu", progress=False)
        began = time.process_time()
        scores = runner.run(module, train, held_out, log=log)
        seconds = time.process_time() - began
        truth = runner.counterfactuals(module, train, held_out, log=log)
    assert scores.certificate is not None
    return {
        "predicted": scores.values[:, 0].tolist(),
        "measured": truth.values[:, 0].tolist(),
        "certificate": scores.certificate.to_json(),
        "seconds": seconds,
        "truth_seconds": truth.seconds,
    }


def certified_anew(setting: Setting, folder: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a run with a certificate of today; the scores must be those that are kept."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "run.tlog"
        module, train, held_out = fitted(setting, folder, log)
        scores = InfluenceRunner(accelerator="cpu", progress=False).run(module, train, held_out, log=log)
    assert scores.certificate is not None
    np.testing.assert_allclose(scores.values[:, 0], found["predicted"], rtol=1e-3, atol=1e-6)
    return {**found, "certificate": scores.certificate.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was said of a run, and what is so."""

    setting: Setting
    certificate: Certificate
    predicted: np.ndarray
    measured: np.ndarray

    @classmethod
    def of(cls, setting: Setting, found: Mapping[str, Any]) -> Outcome:
        """From what is kept of it."""
        return cls(
            setting=setting,
            certificate=Certificate.from_json(found["certificate"]),
            predicted=np.array(found["predicted"]),
            measured=np.array(found["measured"]),
        )

    @property
    def truth(self) -> float:
        """Correlation with all examples really left out."""
        return float(np.corrcoef(self.predicted, self.measured)[0, 1])

    @property
    def covered(self) -> bool | None:
        """Whether the interval of the whole run holds the truth to the two digits that are shown."""
        trust = self.certificate.trust
        if trust is None or not trust.is_whole:
            return None
        return trust.low - 0.005 <= self.truth <= trust.high + 0.005

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        trust, amplification = self.certificate.trust, self.certificate.amplification
        assert amplification is not None
        figure = "-" if trust is None or trust.headline is None else f"{trust.headline:.2f}"
        if trust is None:
            interval = "none"
        elif trust.is_whole:
            interval = f"{trust.low:.2f} to {trust.high:.2f}"
        else:
            interval = f"none; {trust.correlation:.2f} in {trust.where}"
        verdict = {None: "", True: "yes", False: "**no**"}[self.covered]
        return (
            self.setting.data,
            self.setting.model,
            f"{self.setting.rate:g}",
            str(self.setting.epochs * EXAMPLES // BATCH),
            f"{amplification.factor:.2g}",
            "0" if trust is None else str(len(trust.example_ids)),
            figure,
            interval,
            f"{self.truth:.2f}",
            verdict,
        )


HEAD = ("data", "model", "lr", "steps", "amplification", "left out", "figure", "interval", "truth", "covered")


def summary(outcomes: Sequence[Outcome]) -> str:
    """The study in one paragraph."""
    whole = [o for o in outcomes if o.covered is not None]
    none = [o for o in outcomes if o.certificate.trust is None]
    part = [o for o in whole if o.certificate.trust and len(o.certificate.trust.example_ids) < EXAMPLES]
    figures = [(o.certificate.trust.headline, o.truth) for o in whole if o.certificate.trust]
    gaps = [abs(figure - truth) for figure, truth in figures if figure is not None]
    return (
        f"{len(outcomes)} runs; {len(whole)} with examples left out of the whole run ({len(whole) - len(part)} with "
        f"all {EXAMPLES} of them), {len(outcomes) - len(whole) - len(none)} of their last steps only, {len(none)} with "
        "none, since a part of the walk's time was not enough. The interval holds the truth "
        f"in {sum(bool(o.covered) for o in whole)} of {len(whole)} runs, in {sum(bool(o.covered) for o in part)} of "
        f"the {len(part)} in which some examples only were left out. {len(gaps)} runs have a figure; the largest "
        f"distance of one from the truth is {max(gaps, default=0):.3f}, {sum(gap > OFF for gap in gaps)} are off by "
        f"more than {OFF}."
    )


def forced(outcomes: Sequence[Outcome], count: int, draws: int = 4) -> tuple[str, ...]:
    """The same where just so many examples are left out of each run, drawn anew several times."""
    covered, gaps, widths = [], [], []
    for outcome in outcomes:
        predicted = torch.as_tensor(outcome.predicted)
        for seed in range(draws):
            ids = spread_sample(predicted, torch.arange(len(predicted)), count, seed)
            said = agreement(predicted, ids, outcome.measured[ids].tolist(), seed)
            covered.append(said.low - 0.005 <= outcome.truth <= said.high + 0.005)
            widths.append(said.high - said.low)
            if max(said.high - said.correlation, said.correlation - said.low) <= CERTAIN:
                gaps.append(abs(said.correlation - outcome.truth))
    return (
        str(count),
        f"{100 * np.mean(covered):.1f} %",
        f"{np.median(widths):.2f}",
        f"{100 * len(gaps) / len(covered):.0f} %",
        f"{max(gaps, default=0):.2f}",
        f"{100 * np.mean(np.array(gaps) > OFF):.1f} %" if gaps else "-",
    )


def page(outcomes: Sequence[Outcome], tuning: Sequence[Outcome], command: str) -> str:
    """What the study found, in Markdown."""
    head = ("left out", "covered", "median width", "runs with a figure", "largest distance", "off by more than 0.1")
    counts = (6, 12, 24, 48)
    parts = [
        f"Measured by `{command}`.",
        summary(outcomes),
        cases.table(HEAD, [o.row() for o in outcomes]),
        "Just so many examples left out of the whole of each of these runs, four draws each:",
        cases.table(head, [forced(outcomes, count) for count in counts]),
    ]
    if tuning:
        parts += [
            "The same of the runs by which the interval was built (another seed, other lengths of training):",
            cases.table(head, [forced(tuning, count) for count in counts]),
        ]
    return "\n\n".join(parts)


def kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; computed and written if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(compute()))
        part.rename(path)
    return json.loads(path.read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not yet measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("SGDINF_DATA_DIR", "../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("runs/certificate"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--tuning", type=int, nargs=2, metavar=("SEED", "SHIFT"), help="compare with another study")
    parser.add_argument("--certify-anew", action="store_true")
    parser.add_argument("--output", type=Path, help="page whose part between the marks is replaced")
    chosen = parser.parse_args(arguments)
    cases.quiet()

    def study(seed: int, shift: int) -> list[Outcome]:
        outcomes = []
        for setting in settings(seed, shift):
            path = chosen.cache / f"{setting.name}.json"
            if path.exists() and chosen.certify_anew and seed == chosen.seed:
                path.write_text(json.dumps(certified_anew(setting, chosen.data_dir, json.loads(path.read_text()))))
            found = kept(path, lambda s=setting: measured(s, chosen.data_dir))
            outcomes.append(Outcome.of(setting, found))
            print(setting.name, f"{outcomes[-1].truth:.2f}", file=sys.stderr, flush=True)
        return outcomes

    command = f"python benchmarks/certificate.py --seed {chosen.seed} --shift {chosen.shift}"
    text = page(study(chosen.seed, chosen.shift), study(*chosen.tuning) if chosen.tuning else (), command)
    print(text)
    if chosen.output is not None:
        start, end = "<!-- calibration -->", "<!-- end of calibration -->"
        before, _, rest = chosen.output.read_text(encoding="utf-8").partition(start)
        chosen.output.write_text(f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
