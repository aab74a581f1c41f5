"""Cost and accuracy of ensembles trained in shards, beside one model whose recorded run is taken again.

For every number of shards and slices: accuracy of the members and of each way to let them answer together, the part of
a training that forgetting one example costs and that forgetting a set costs, and whether the ensemble that forgot is
the one that was trained without. Beside them one model of the same data, epochs and batches, and what its updates cost
and how far they are from the exact answer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sgdinf import random_state
from lightning_sgdinf.atomic_write import replace_bytes
from lightning_sgdinf.ensembles import Aggregation, Sisa, aggregate
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.plain_text import markdown_table, printable_logger
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.studies.cache import load_or_compute, pin_settings, read_json, results_of
from lightning_sgdinf.studies.console import Console, Table, plain
from lightning_sgdinf.studies.definitions import pin_definitions
from lightning_sgdinf.studies.job import PIPELINE_GROUPS, Parts
from lightning_sgdinf.updates import CounterfactualReplay, ExtrapolatedReplay, ModelUpdate, load_state
from lightning_sgdinf.zoo import ImageData

PAGE = "table.md"
logger = printable_logger(__name__)
_WAYS: tuple[Aggregation, ...] = ("majority", "mean_softmax", "mean_logits")


@dataclass(frozen=True, kw_only=True)
class SisaJob:
    """Accuracy, cost and exactness of ensembles trained in shards, one seed at a time.

    Each result is one file in ``output_dir``; an existing one is not computed again. ``table.md`` is written anew from
    all results in the folder: means over seeds.

    In a configuration::

        job:
          _target_: lightning_sgdinf.studies.SisaJob
          shards: [1, 5]
          slices: [1, 5]

    Args:
        shards: Numbers of shards to try.
        slices: Numbers of slices to try with each.
        points: Single examples whose cost is computed.
        part: Of the examples, that are forgotten at once.
        workers: Shards trained side by side.

    Raises:
        ConfigurationError: A number out of range, or nothing to do.
    """

    ignored_groups: ClassVar[Mapping[str, str]] = {
        **PIPELINE_GROUPS,
        "estimator": "it compares ensembles",
        "compare": "it compares ensembles",
        "query": "it measures accuracy on the test set",
    }

    shards: Sequence[int] = (1, 2, 5, 10)
    slices: Sequence[int] = (1, 5)
    points: int = 50
    part: float = 0.01
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.shards or not self.slices or self.points < 1 or not 0 < self.part < 1 or self.workers < 1:
            raise ConfigurationError(
                "expected shards, slices, points >= 1, part in (0, 1) and workers >= 1, got "
                f"{list(self.shards)}, {list(self.slices)}, {self.points}, {self.part} and {self.workers}"
            )

    def run(self, parts: Parts) -> float:
        """Compute what is missing, and write the table.

        Returns:
            The accuracy of the last ensemble, by the mean of the softmax outputs.

        Raises:
            ConfigurationError: A data set without images, or a folder with results of other settings.
        """
        data = parts.dataset
        if not isinstance(data, ImageData):
            raise ConfigurationError(f"dataset: expected images, got {type(data).__name__}")
        folder, seed = parts.folder, parts.seed
        pin_settings(folder / "settings.json", self._settings(parts, data))
        pin_definitions(folder / "definitions.json", parts, {})
        forgotten = _random_ids(len(data.train_set), max(1, round(self.part * len(data.train_set))), seed + 1)
        load_or_compute(folder / f"model_{seed}.json", lambda: self._one_model(parts, data, forgotten))
        cell: dict[str, Any] = {}
        for shards in self.shards:
            for slices in self.slices:
                file = folder / f"ensemble_{shards:03d}_{slices:03d}_{seed}.json"
                compute = lambda s=shards, r=slices: self._ensemble(parts, data, s, r, forgotten)  # noqa: E731
                cell = load_or_compute(file, compute)
        page = folder / PAGE
        ensembles = [read_json(file) for file in sorted(folder.glob("ensemble_*.json"))]
        models = [read_json(file) for file in sorted(folder.glob("model_*.json"))]
        with results_of(folder):
            replace_bytes(page, markdown(ensembles, models).encode("utf-8", "replace"))
            _print(ensembles, seed, page)
            return cell["accuracy"]["mean_softmax"]

    def _settings(self, parts: Parts, data: ImageData) -> dict[str, Any]:
        config = {group: parts.config.get(group) for group in ("dataset", "model", "optimizer")}
        if isinstance(config["dataset"], Mapping):  # results of several seeds share a folder
            config["dataset"] = {key: value for key, value in config["dataset"].items() if key != "seed"}
        return {
            **config,
            "examples": len(data.train_set),
            "batch_size": data.batch_size,
            "epochs": _epochs(parts),
            "points": self.points,
            "part": self.part,
        }

    def _ensemble(
        self, parts: Parts, data: ImageData, shards: int, slices: int, forgotten: Sequence[int]
    ) -> dict[str, Any]:
        logger.info("%d shards of %d slices, seed %d", shards, slices, parts.seed)
        with tempfile.TemporaryDirectory() as folder:
            make = parts.training(data, parts.seed).new_model

            def new(name: str) -> Sisa:
                numbers = {"shards": shards, "slices": slices, "epochs": _epochs(parts), "seed": parts.seed}
                more = {"batch_size": data.batch_size, "trainer": parts.trainer, "workers": self.workers}
                return Sisa(root=Path(folder) / name, keep=None, **numbers, **more)

            began = perf_counter()
            ensemble = new("ensemble").fit(make, data)
            seconds = perf_counter() - began
            accuracy = _accuracies(list(ensemble.members().values()), data)
            chosen = _random_ids(len(data.train_set), self.points, parts.seed + 2)
            points = [ensemble.forecast([j]).share for j in chosen]
            forecast = ensemble.forecast(forgotten)
            done = ensemble.unlearn(forgotten)
            without = new("without").fit(make, data, without=forgotten)
            pairs = zip(ensemble.states(), without.states(), strict=True)
            return {
                "shards": shards,
                "slices": slices,
                "seed": parts.seed,
                "accuracy": accuracy,
                "accuracy_after": _accuracies(list(ensemble.members().values()), data)["mean_softmax"],
                "cost_of_one": points,
                "formula": (2 * slices + 1) / (3 * slices * shards),
                "cost_of_part": forecast.share,
                "shards_of_part": forecast.shards,
                "as_forecast": done.visits == forecast.visits,
                "bit_for_bit": all(_equal(a, b) for a, b in pairs),
                "seconds": seconds,
                "seconds_of_part": done.seconds,
            }

    def _one_model(self, parts: Parts, data: ImageData, forgotten: Sequence[int]) -> dict[str, Any]:
        """Return cost and distance from the exact answer of updates of one recorded model."""
        logger.info("one model, seed %d", parts.seed)
        updates: dict[str, ModelUpdate] = {
            "exact replay": CounterfactualReplay(),
            "replay of the last epoch": CounterfactualReplay(epochs=1),
            "extrapolated replay": ExtrapolatedReplay(),
        }
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "run.tlog"
            run = parts.training(data, parts.seed).fit(
                recorder=TrajectoryRecorder(log), data={"datamodule": data}, enable_progress_bar=False
            )
            runner = parts.runner(certificate="off", progress=False)
            rows: dict[str, Any] = {}
            exact: Tensor | None = None
            for name, update in updates.items():
                try:
                    selection = Selection(drop=tuple(forgotten))
                    updated = runner.update(run.model, datamodule=data, log=log, update=update, selection=selection)
                except SgdInfluenceError as error:
                    rows[name] = {"refused": f"{type(error).__name__}: {error}"}
                    continue
                answers = _answers(_with(run.model, updated.state), data)
                exact = answers if exact is None else exact
                rows[name] = {
                    "accuracy": _accuracy(answers, data),
                    "cost": None if updated.epochs is None else updated.epochs / _epochs(parts),
                    "seconds": updated.seconds,
                    "divergence": _divergence(exact, answers),
                }
        return {"seed": parts.seed, "training": run.seconds, "updates": rows}


def markdown(ensembles: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> str:
    """Return two tables: of ensembles, a row for each number of shards and slices, and of one model's updates."""
    head = [
        "shards",
        "slices",
        "one member",
        *_WAYS,
        "cost of one",
        "formula",
        "cost of the set",
        "bit for bit",
        "seeds",
    ]
    rows = [head]
    for shards, slices in dict.fromkeys((c["shards"], c["slices"]) for c in ensembles):
        own = [c for c in ensembles if (c["shards"], c["slices"]) == (shards, slices)]
        accuracies = [_mean([c["accuracy"][way] for c in own]) for way in ("one", *_WAYS)]
        cost = _mean([float(np.mean(c["cost_of_one"])) for c in own])
        exact = f"{sum(c['bit_for_bit'] for c in own)} of {len(own)}"
        row = [str(shards), str(slices), *accuracies, cost, f"{own[0]['formula']:.3f}"]
        rows.append([*row, _mean([c["cost_of_part"] for c in own]), exact, str(len(own))])
    head = ["one model", "accuracy", "cost", "seconds", "divergence from exact", "seeds"]
    others = [head]
    for name in dict.fromkeys(name for model in models for name in model["updates"]):
        own = [m["updates"][name] for m in models if name in m["updates"]]
        done = [u for u in own if "refused" not in u]
        refused = f"refused for {len(own) - len(done)}" if len(done) < len(own) else ""
        keys = ("accuracy", "cost", "seconds", "divergence")
        others.append([name, *(_mean([u[key] for u in done]) for key in keys), f"{len(done)} {refused}".strip()])
    return f"{markdown_table(rows)}\n\n{markdown_table(others)}\n"


def _epochs(parts: Parts) -> int:
    epochs = getattr(parts.trainer, "keywords", {}).get("max_epochs")
    if not epochs:
        raise ConfigurationError("trainer.max_epochs: expected a number of epochs, got none")
    return int(epochs)


def _random_ids(count: int, size: int, seed: int) -> tuple[int, ...]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(order[:size].tolist())


def _equal(a: Mapping[str, Tensor] | None, b: Mapping[str, Tensor] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _answers(model: nn.Module, data: ImageData) -> Tensor:
    """Return the logits of the test set, ``[n, C]``."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), random_state.preserved():
        logits = torch.cat([model(x) for x, _ in _test_loader(data)])
    model.train(was_training)
    return logits


def _test_loader(data: ImageData) -> DataLoader[Any]:
    return data.test_dataloader()


def _accuracies(models: Sequence[nn.Module], data: ImageData) -> dict[str, float]:
    outputs = torch.stack([_answers(model, data) for model in models])
    one = float(np.mean([_accuracy(logits, data) for logits in outputs]))
    return {"one": one} | {way: _accuracy(aggregate(outputs, way), data) for way in _WAYS}


def _accuracy(answers: Tensor, data: ImageData) -> float:
    return float((answers.argmax(1) == data.test_set.labels).double().mean())


def _divergence(exact: Tensor, answers: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of answers from the exact ones, in nats."""
    log_exact, log_answers = (logits.double().log_softmax(1) for logits in (exact, answers))
    return float(F.kl_div(log_answers, log_exact, reduction="batchmean", log_target=True))


def _with(model: nn.Module, state: ModelState) -> nn.Module:
    load_state(model, state)
    return model


def _mean(values: Sequence[float]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ""
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def _print(ensembles: Sequence[Mapping[str, Any]], seed: int, page: Path) -> None:
    console = Console(highlight=False)
    table = Table(title=f"ensembles, seed {seed}", title_justify="left")
    for name in ("shards", "slices", "accuracy", "one member", "cost of one", "cost of the set", "bit for bit"):
        table.add_column(name, justify="right")
    for cell in (c for c in ensembles if c["seed"] == seed):
        accuracy, cost = cell["accuracy"], float(np.mean(cell["cost_of_one"]))
        values = (f"{v:.3f}" for v in (accuracy["mean_softmax"], accuracy["one"], cost, cell["cost_of_part"]))
        table.add_row(str(cell["shards"]), str(cell["slices"]), *values, "yes" if cell["bit_for_bit"] else "NO")
    console.print(table)
    console.print(f"[bold]{plain(page)}[/]", soft_wrap=True)
