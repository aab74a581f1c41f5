"""Ensembles that can forget: sharded, isolated, sliced and aggregated training (Bourtoule et al. 2021).

Each member sees one shard of the examples. To forget some, the shards that hold them are trained again from the first
stage that saw one, and the others stay: bit for bit the ensemble that was trained without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_sgdinf import random_state
from lightning_sgdinf.atomic_write import locked, replace_bytes
from lightning_sgdinf.ensembles.aggregation import Aggregation, aggregate, check_aggregation
from lightning_sgdinf.ensembles.cost import Cost, forecast
from lightning_sgdinf.ensembles.influence import EnsembleLoss
from lightning_sgdinf.ensembles.plan import ShardPlan
from lightning_sgdinf.ensembles.training import ShardTraining, StageRecord
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.foreign_files import read_document
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.query import Query
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring import Method

logger = printable_logger(__name__)

_MOST_THREADS = 4096
_LOOKED_AT = 16  # examples whose content tells one data set from another


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """The work that making an ensemble forget took.

    Attributes:
        forgotten: Every id that is forgotten now, increasing.
        shards: Those that were trained again.
        visits: Example gradients that were computed.
        seconds: Of training, added up over shards.
    """

    forgotten: tuple[int, ...]
    shards: tuple[int, ...]
    visits: int
    seconds: float


class Sisa:
    """An ensemble trained in shards and slices, that forgets exactly.

    A folder holds all of it: the plan, the examples that are to be forgotten, one checkpoint per shard and stage, one
    record per shard. Whatever was interrupted goes on by the same call. Forgotten examples stay forgotten, also for a
    later `fit` in the same folder, and checkpoints that have seen them are removed.

    Bit for bit means: on the same machine, with the same versions and the number of threads that torch had at the
    first `fit`, which is kept.

    Args:
        shards: ``S``: members of the ensemble. One request costs about ``1/S`` of a training; every member sees
            ``1/S`` of the examples.
        slices: ``R``: stages of each member's training; a request then costs ``(2R + 1) / (3R)`` of a shard.
        epochs: Passes over its shard for each member, in work.
        batch_size: Examples per batch.
        seed: Of shards, initial models, order, and everything that training draws.
        root: The folder.
        aggregation: How members answer together; see `ensembles.Aggregation`.
        trainer: Makes a Trainer of one device for one stage, given further arguments: a partial of ``Trainer``.
        keep: Which states the members' records hold, as for `TrajectoryRecorder`; ``None`` for no records.
        workers: Shards trained side by side. They run on joblib's backend: processes of this machine, or whatever
            ``joblib.parallel_config`` names (Ray, Dask).

    Raises:
        ConfigurationError: A number out of range, or no such aggregation.
    """

    def __init__(
        self,
        *,
        shards: int = 5,
        slices: int = 1,
        epochs: int = 20,
        batch_size: int = 32,
        seed: int = 0,
        root: str | Path,
        aggregation: Aggregation = "mean_softmax",
        trainer: Callable[..., Trainer] = Trainer,
        keep: Any = "every_step",
        workers: int = 1,
    ) -> None:
        check_aggregation(aggregation)
        if workers < 1:
            raise ConfigurationError(f"workers: expected at least 1, got {workers}")
        self.root, self.workers = Path(root), workers
        self.aggregation: Aggregation = aggregation
        self._numbers = {"shards": shards, "slices": slices, "epochs": epochs, "batch_size": batch_size, "seed": seed}
        ShardPlan(examples=shards * slices, **self._numbers)  # refuses what no data set would make right
        self._trainer, self._keep = trainer, keep
        self._training: ShardTraining | None = None
        self._source: dict[str, Any] = {}
        self._answering: tuple[tuple[int, ...], list[LightningModule]] | None = None

    def fit(
        self,
        make_model: Callable[[], LightningModule],
        dataset: Any,
        without: Iterable[int] = (),
    ) -> Sisa:
        """Train every shard, or what is missing of it.

        Args:
            make_model: Makes an untrained model; the initial parameters of each shard are drawn when it is called.
            dataset: Map-style; or a DataLoader, whose ``collate_fn`` and workers are used; or a data module.
            without: Ids to leave out, besides those that the folder says are forgotten.

        Raises:
            ConfigurationError: The folder holds another ensemble; names what differs. An id is not in the data set.
        """
        loader, datamodule = _training_data(dataset)
        plan = ShardPlan(examples=len(loader.dataset), **self._numbers)  # type: ignore[arg-type]
        left_out = plan.check_ids(tuple(without))
        threads = self._pin(plan, loader)
        self._training = ShardTraining(
            plan=plan,
            folder=self.root,
            make_model=make_model,
            loader=loader,
            datamodule=datamodule,
            trainer=self._trainer,
            keep=self._keep,
            threads=threads,
        )
        self._answering = None
        self._source = {"train_dataloaders": loader} if datamodule is None else {"datamodule": datamodule}
        self._forget(left_out)
        self._bring_up()
        return self

    @property
    def plan(self) -> ShardPlan:
        """Return who is trained on what.

        Raises:
            ConfigurationError: Before `fit`.
        """
        return self._fitted.plan

    @property
    def forgotten(self) -> tuple[int, ...]:
        """Return the ids that the folder says are forgotten, increasing."""
        file = self.root / "forgotten.json"
        ids = read_document(file, list) if file.is_file() else []
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ConfigurationError(f"{file}: expected ids of examples, got {str(ids)[:80]}; restore a copy")
        return tuple(ids)

    def forecast(self, ids: Iterable[int]) -> Cost:
        """Compute what `unlearn` would cost, before it is done.

        Raises:
            ConfigurationError: An id is not in the data set, or before `fit`.
        """
        training = self._fitted
        chosen = training.plan.check_ids(tuple(ids))
        return forecast(training.plan, chosen, frozenset(self.forgotten), training.records())

    def unlearn(self, ids: Iterable[int]) -> Unlearned:
        """Make the ensemble forget examples; several at once cost less than one after another.

        The request is written down first: if this is interrupted, the next `fit` or `unlearn` finishes it.

        Returns:
            What it took.

        Raises:
            ConfigurationError: An id is not in the data set; no example would be left; or before `fit`.
        """
        chosen = self._fitted.plan.check_ids(tuple(ids))
        logger.info("unlearning %d examples: %s", len(chosen), self.forecast(chosen))
        self._forget(chosen)
        trained = self._bring_up()
        return Unlearned(
            forgotten=self.forgotten,
            shards=tuple(shard for shard, stages in enumerate(trained) if stages),
            visits=sum(record.visits for stages in trained for record in stages),
            seconds=sum(record.seconds for stages in trained for record in stages),
        )

    def states(self) -> list[dict[str, Tensor] | None]:
        """Return the parameters and buffers of each member; ``None`` for a shard of which everything is forgotten."""
        training, without = self._fitted, frozenset(self.forgotten)
        return [training.final_state(shard, without) for shard in range(training.plan.shards)]

    def members(self) -> dict[int, LightningModule]:
        """Return the trained members by shard, in eval mode; a shard of which everything is forgotten has none."""
        models = {}
        for shard, state in enumerate(self.states()):
            if state is not None:
                models[shard] = self._fitted.new_model(shard).eval()
                models[shard].load_state_dict(state)
        return models

    def predict(self, x: Any) -> Tensor:
        """Compute the ensemble's answer. Members are read once, and again after examples were forgotten.

        Args:
            x: What the model's ``forward`` takes.

        Returns:
            See `ensembles.aggregate`: ``[n, C]``, whose largest entries are the classes.
        """
        forgotten = self.forgotten
        if self._answering is None or self._answering[0] != forgotten:
            self._answering = forgotten, list(self.members().values())
        with torch.no_grad():
            return aggregate(torch.stack([model(x) for model in self._answering[1]]), self.aggregation)

    def influence(
        self,
        runner: InfluenceRunner,
        val_dataloaders: Any = None,
        *,
        query: Query | None = None,
        estimator: Method | None = None,
    ) -> Scores:
        """Score every training example for the ensemble, by its id in the data set.

        Args:
            runner: Walks over the members' records.
            val_dataloaders: As for `InfluenceRunner.run`; not needed with a data module that has them.
            query: Asked of every member, and averaged over them; ``None`` for the loss of the ensemble's own answers,
                exactly to first order.
            estimator: As for `InfluenceRunner.run`.

        Returns:
            Scores with the certificate of the member whose removals are predicted worst, which says so, and the
            warnings of the others. A forgotten example has 0.

        Raises:
            ConfigurationError: There are no records (``keep=None``), or before `fit`.
        """
        if self._keep is None:
            raise ConfigurationError("keep=None: the members were trained without records; take keep='every_step'")
        models = self.members()
        parts = []
        for shard, model in models.items():
            others = [other for s, other in models.items() if s != shard]
            asked = EnsembleLoss(others, self.aggregation) if query is None else query
            log = self._fitted.log_path(shard)
            parts.append(
                runner.run(
                    model, val_dataloaders=val_dataloaders, **self._source, log=log, query=asked, estimator=estimator
                )
            )
        return _together(parts, tuple(models), of_members=query is not None)

    @property
    def _fitted(self) -> ShardTraining:
        if self._training is None:
            raise ConfigurationError(
                "the ensemble is not fitted in this process: call fit(make_model, dataset) first, which trains nothing "
                "that the folder already has"
            )
        return self._training

    def _forget(self, ids: frozenset[int]) -> None:
        plan = self._fitted.plan
        with locked(self.root / "forgotten.json"):
            together = sorted(ids | set(self.forgotten))
            if len(together) == plan.examples:
                raise ConfigurationError(
                    f"all {plan.examples} training examples would be forgotten; leave at least one"
                )
            replace_bytes(self.root / "forgotten.json", json.dumps(together).encode())

    def _bring_up(self) -> list[list[StageRecord]]:
        training, without = self._fitted, frozenset(self.forgotten)
        shards = range(training.plan.shards)
        if self.workers == 1:
            return [training.bring_up(shard, without) for shard in shards]
        joblib = require("joblib", extra="parallel")
        if getattr(joblib.parallel.get_active_backend(prefer="processes")[0], "uses_threads", False):
            raise ConfigurationError(
                "workers > 1 on joblib's threads: threads share one random generator, so that no run could be "
                "repeated; take a backend of processes, e.g. joblib.parallel_config(backend='loky')"
            )
        return list(joblib.Parallel(self.workers)(joblib.delayed(training.bring_up)(s, without) for s in shards))

    def _pin(self, plan: ShardPlan, loader: DataLoader[Any]) -> int:
        """Write down what the ensemble is, or compare with what the folder holds; returns the number of threads."""
        chosen = sorted({j * plan.examples // _LOOKED_AT for j in range(_LOOKED_AT)})
        with random_state.seeded(plan.seed):
            examples = [loader.dataset[j] for j in chosen]
        about = asdict(plan) | {"dataset": type(loader.dataset).__qualname__, "content": batch_digest(examples)}
        file = self.root / "ensemble.json"
        with locked(file):
            if not file.is_file():
                replace_bytes(file, json.dumps(about | {"threads": torch.get_num_threads()}).encode())
            written = read_document(file, dict)
        differing = [
            f"{key}: {written.get(key)} there, {value} now" for key, value in about.items() if written.get(key) != value
        ]
        if differing:
            raise ConfigurationError(
                f"{self.root} holds another ensemble ({'; '.join(differing)}); give another root, or remove this one"
            )
        if not (type(threads := written.get("threads")) is int and 1 <= threads <= _MOST_THREADS):
            raise ConfigurationError(f"{file}: threads is {str(threads)[:80]}, expected a number; restore a copy")
        return threads


def _training_data(dataset: Any) -> tuple[DataLoader[Any], LightningDataModule | None]:
    """Return a loader whose data set has ids, and the data module it comes from."""
    datamodule, loader = None, dataset
    if isinstance(dataset, LightningDataModule):
        dataset.prepare_data()
        dataset.setup("fit")
        datamodule, loader = dataset, dataset.train_dataloader()
    source = loader.dataset if isinstance(loader, DataLoader) else loader
    if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
        raise ConfigurationError(
            f"expected a map-style data set, with __len__ and __getitem__, got {type(source).__name__}: examples "
            "without ids cannot be put into shards"
        )
    return (loader if isinstance(loader, DataLoader) else DataLoader(loader)), datamodule


def _together(parts: Sequence[Scores], shards: Sequence[int], *, of_members: bool) -> Scores:
    """Add up the members' scores, each of which is 0 for what its shard does not hold."""
    values = torch.stack([part.values for part in parts]).sum(0) / (len(parts) if of_members else 1)
    certified = [(s, part.certificate) for s, part in zip(shards, parts, strict=True) if part.certificate is not None]
    certificate = None
    if certified:
        shard, worst = min(certified, key=lambda pair: pair[1].trust.correlation if pair[1].trust else 0.0)
        note = f"Checked on shard {shard}, the one of {len(parts)} whose removals are predicted worst."
        others = (f"Shard {s}: {said}" for s, one in certified for said in one.warnings if s != shard)
        certificate = replace(
            worst,
            model=f"shard {shard}, the worst predicted of {len(parts)}",
            unjudged=(*worst.unjudged, *(() if worst.level == "off" else others)),
            notes=(*worst.notes, note),
        )
    provenance = {**parts[0].provenance, "members": [dict(part.provenance) for part in parts]}
    return replace(parts[0], values=values, per_epoch=None, certificate=certificate, provenance=provenance)
