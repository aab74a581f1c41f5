"""Training one shard stage by stage, each from the checkpoint of the stage before.

A stage is one ``Trainer.fit`` that begins from a file and ends with one. So a shard that is unlearned, or whose
training was killed, goes on exactly as if it had never stopped: parameters, optimizer, learning-rate schedule and loops
come from Lightning's own checkpoint, everything that is drawn from the seeds of the plan. A checkpoint's name has a
digest of the examples it has seen; one whose digest is not that of the plan is never used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sgdinf import random_state
from lightning_sgdinf.atomic_write import locked, replace_bytes
from lightning_sgdinf.ensembles.plan import ShardPlan
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.foreign_files import read_document, read_tensors
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.record import TrajectoryRecorder

LOG = "run.tlog"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage that was trained.

    Attributes:
        digest: Of the plan, the initial model and the examples of this stage and of those before.
        visits: Example gradients it took.
        seconds: Wall time.
    """

    digest: str
    visits: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ShardTraining:
    """All that training any shard needs; can be sent to another process.

    Attributes:
        plan: Who is trained on what.
        folder: Holds a folder for each shard.
        make_model: Makes an untrained model; called under the shard's seed.
        loader: Gives data set, ``collate_fn`` and workers.
        datamodule: Whose hooks prepare batches, if there is one.
        trainer: Makes a Trainer, given further arguments.
        keep: Which states the records hold; ``None`` for no records.
        threads: Of torch while a shard is trained: another number may round otherwise.
        initial: Digests of the models that shards start from, those that are known.
    """

    plan: ShardPlan
    folder: Path
    make_model: Callable[[], LightningModule]
    loader: DataLoader[Any]
    datamodule: LightningDataModule | None
    trainer: Callable[..., Trainer]
    keep: Any
    threads: int
    initial: dict[int, int] = field(default_factory=dict, repr=False)

    def shard_folder(self, shard: int) -> Path:
        """Return where the files of a shard are."""
        return self.folder / f"shard-{shard:03d}"

    def log_path(self, shard: int) -> Path:
        """Return where the record of a shard is."""
        return self.shard_folder(shard) / LOG

    def new_model(self, shard: int) -> LightningModule:
        """Make the model that a shard starts from; the global generators are left alone."""
        with random_state.seeded(self.plan.seed_of(shard)):
            return self.make_model()

    def bring_up(self, shard: int, without: AbstractSet[int]) -> list[StageRecord]:
        """Train what is missing of a shard without some examples; files of any other training of it are removed first.

        Returns:
            The stages that were trained now.
        """
        folder = self.shard_folder(shard)
        with locked(folder / "training"), _threads(self.threads):
            digests = self.digests(shard, without)
            self._remove_others(folder, digests)
            return [
                self._train(shard, stage, without, digests)
                for stage in range(self.plan.slices)
                if digests[stage] and not self.checkpoint(shard, stage, digests).is_file()
            ]

    def final_state(self, shard: int, without: AbstractSet[int]) -> dict[str, Tensor] | None:
        """Return parameters and buffers of a trained shard; ``None`` if nothing is left to train it on.

        Raises:
            ConfigurationError: It is not trained without these examples.
        """
        digests = self.digests(shard, without)
        if not digests[-1]:
            return None
        path = self.checkpoint(shard, self.plan.slices - 1, digests)
        if not path.is_file():
            raise ConfigurationError(
                f"shard {shard} in {self.folder} is not trained without the {len(without)} examples that are to be "
                "forgotten: its training was interrupted, or another process is at it. Call fit or unlearn([]), which "
                "finishes it"
            )
        return _checkpoint(path)["state_dict"]

    def digests(self, shard: int, without: AbstractSet[int]) -> list[str]:
        """Return for each stage a digest of all that its result depends on; empty where nothing is left to train on."""
        if shard not in self.initial:
            self.initial[shard] = batch_digest(dict(self.new_model(shard).state_dict()))
        about = [
            asdict(self.plan),
            shard,
            self.initial[shard],
            self.threads,
            _plain(getattr(self.trainer, "keywords", {})),
        ]
        digests = []
        for stage in range(self.plan.slices):
            kept = sorted(self.plan.kept(shard, stage, without))
            text = json.dumps([*about, stage, kept], sort_keys=True)
            digests.append(hashlib.sha256(text.encode()).hexdigest()[:20] if kept else "")
        return digests

    def checkpoint(self, shard: int, stage: int, digests: list[str]) -> Path:
        """Return where the checkpoint of a stage is."""
        return self.shard_folder(shard) / f"stage-{stage:02d}-{digests[stage]}.ckpt"

    def records(self) -> list[StageRecord]:
        """Return every stage that is on disk."""
        files = sorted(self.folder.glob("shard-*/stage-*.json"))
        return [_stage_record(file) for file in files]

    def _remove_others(self, folder: Path, digests: list[str]) -> None:
        """Remove what was trained with other examples: a checkpoint remembers them."""
        valid = {f"stage-{stage:02d}-{digest}" for stage, digest in enumerate(digests) if digest}
        for file in folder.glob("stage-*"):
            if file.stem not in valid:
                file.unlink()

    def _train(self, shard: int, stage: int, without: AbstractSet[int], digests: list[str]) -> StageRecord:
        earlier = [r for r in range(stage) if digests[r]]
        begins_at = sum(self.plan.stage_epochs(r) for r in earlier)
        data = _StageData(self, shard, stage, without, begins_at)
        ends_at = begins_at + self.plan.stage_epochs(stage)
        last = self.checkpoint(shard, earlier[-1], digests) if earlier else None
        began = perf_counter()
        with random_state.seeded(self.plan.seed_of(shard, stage)), _quiet():
            trainer = self._new_trainer(shard, [_StopAfter(ends_at)], ends_at, goes_on=last is not None)
            if last is not None:
                _checkpoint(last)  # some releases of Lightning run what such a file names
            trainer.fit(self.new_model(shard), datamodule=data, ckpt_path=last)
            self._save(trainer, self.checkpoint(shard, stage, digests))
        record = StageRecord(
            digest=digests[stage],
            visits=self.plan.stage_epochs(stage) * len(self.plan.kept(shard, stage, without)),
            seconds=perf_counter() - began,
        )
        replace_bytes(self.checkpoint(shard, stage, digests).with_suffix(".json"), json.dumps(asdict(record)).encode())
        return record

    def _new_trainer(self, shard: int, callbacks: list[Callback], ends_at: int, *, goes_on: bool) -> Trainer:
        if self.keep is not None:
            resume: Any = {"resume": "auto"} if goes_on else {"resume": "never", "overwrite": True}
            callbacks = [*callbacks, TrajectoryRecorder(self.log_path(shard), keep=self.keep, **resume)]
        given = dict(getattr(self.trainer, "keywords", {}))
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
        }
        total = sum(self.plan.stage_epochs(r) for r in range(self.plan.slices))  # what schedules are made for
        return self.trainer(
            **{k: v for k, v in quiet.items() if k not in given},
            max_epochs=max(total, ends_at),
            reload_dataloaders_every_n_epochs=1,  # batches of forgotten examples alone are missing: lengths differ
            callbacks=[*given.get("callbacks", ()), *callbacks],
        )

    @staticmethod
    def _save(trainer: Trainer, path: Path) -> None:
        draft = path.with_name(f".{path.name}")
        trainer.save_checkpoint(draft)
        draft.replace(path)


class _StopAfter(Callback):
    """Ends the fit after an epoch, so that schedules see the epochs of the whole training as ``max_epochs``."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last epoch of the stage."""
        del pl_module
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.epochs


class _StageData(LightningDataModule):
    """The batches of one stage, brought to the model by the hooks of the user's data module."""

    def __init__(
        self, training: ShardTraining, shard: int, stage: int, without: AbstractSet[int], begins_at: int
    ) -> None:
        super().__init__()
        self._training, self._place, self._without, self._begins_at = training, (shard, stage), without, begins_at

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the epoch that begins."""
        assert self.trainer is not None
        like, epoch = self._training.loader, self.trainer.current_epoch - self._begins_at
        return DataLoader(
            like.dataset,
            batch_sampler=self._training.plan.batches(*self._place, epoch, self._without),
            collate_fn=like.collate_fn,
            num_workers=like.num_workers,
            pin_memory=like.pin_memory,
            worker_init_fn=like.worker_init_fn,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Call the data module's hook."""
        return self._hooks.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Call the data module's hook."""
        return self._hooks.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Call the data module's hook."""
        return self._hooks.on_after_batch_transfer(batch, dataloader_idx)

    @property
    def _hooks(self) -> Any:
        datamodule = self._training.datamodule
        if datamodule is None:
            return super()
        datamodule.trainer = self.trainer
        return datamodule


def _checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of the folder, which may be anybody's: nothing in it is run.

    Raises:
        ConfigurationError: It holds objects, or is none.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ConfigurationError(f"{path}: expected a checkpoint with a state_dict; remove it, and it is trained again")
    return content


def _stage_record(file: Path) -> StageRecord:
    about = read_document(file, dict)
    digest, visits, seconds = (about.get(name) for name in ("digest", "visits", "seconds"))
    if not (isinstance(digest, str) and isinstance(visits, int) and isinstance(seconds, (int, float))):
        raise ConfigurationError(f"{file}: expected digest, visits and seconds of a stage; remove it")
    return StageRecord(digest=digest, visits=visits, seconds=seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from saying of every stage its devices and that it has no validation."""
    said = logging.getLogger("lightning.pytorch")
    level = said.level
    said.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
            yield
    finally:
        said.setLevel(level)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that can be told apart by value."""
    return {k: v for k, v in sorted(arguments.items()) if isinstance(v, (str, int, float, bool, type(None)))}
