"""The header of a log, from a Trainer about to train."""

from __future__ import annotations

import math
import platform
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.log import Constant, Header, Json, constants_document
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.record.budget import Budget
from lightning_sgdinf.record.compatibility import gradient_callbacks, gradient_overrides
from lightning_sgdinf.record.keep import Keep
from lightning_sgdinf.record.state_reader import StateReader
from lightning_sgdinf.record.trainer_facts import trainer_facts


def make_header(
    trainer: Any,
    module: Any,
    *,
    reader: StateReader,
    constants: Sequence[Constant],
    keep: Keep | Budget,
    datasets: tuple[tuple[str, int], ...],
    replayable: str,
    extra: dict[str, Json],
) -> Header:
    """Return what holds for the whole run.

    Args:
        trainer: Inside ``fit``.
        module: The LightningModule.
        reader: Of the state; knows the trained parameters.
        constants: What nothing trains.
        keep: Policy by which states are stored.
        datasets: Class and length per loader.
        replayable: Why the run cannot be replayed, or empty.
        extra: Joins what is known here.
    """
    return Header(
        run_id=uuid.uuid4().hex,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=_qualified(type(module)),
        optimizer=_qualified(type(trainer.optimizers[0])),
        parameters=tuple((n, tuple(p.shape), dtype_name(p.dtype)) for n, p in reader.params.items()),
        constant_digest=batch_digest([c.digest for c in constants]) if constants else 0,
        precision=str(trainer.precision),
        keep=str(keep),
        datasets=datasets,
        replayable=replayable,
        environment=environment(module),
        extra=_trainer_settings(trainer, module) | constants_document(constants) | extra,
    )


def expected_steps(trainer: Any, taken: int) -> int | None:
    """Return how many steps the log will have when the fit ends; ``None`` if that is open.

    Args:
        trainer: Inside ``fit``.
        taken: Steps recorded so far.
    """
    try:
        total = trainer.estimated_stepping_batches
    except Exception:  # it is only an estimate, which loaders and settings may make impossible
        return None
    if not math.isfinite(total) or total < 0:
        return None
    return taken + max(0, int(total) - trainer.global_step)


def environment(module: Any) -> dict[str, Json]:
    """Return the versions and settings on which it depends that a step re-run gives the same bits."""
    cuda = torch.cuda.is_available()
    system = platform.uname()  # but not its processor, which starts a process
    return {
        "python": platform.python_version(),
        "platform": f"{system.system}-{system.release}-{system.machine}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "lightning": _host_version(),
        "lightning_sgdinf": _version("lightning-sgdinf"),
        "device": str(module.device),
        "device_name": torch.cuda.get_device_name(module.device)
        if module.device.type == "cuda"
        else platform.processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic if cuda else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if cuda else None,
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled),
        "default_dtype": dtype_name(torch.get_default_dtype()),
    }


def _trainer_settings(trainer: Any, module: Any) -> dict[str, Json]:
    loaders = trainer.train_dataloader
    sizes = [getattr(loader, "batch_size", None) for loader in tree_flatten(loaders)[0]]
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "loaders_in": type(loaders).__name__ if isinstance(loaders, (Mapping, Sequence)) else "",
        "batch_sizes": [size if isinstance(size, int) else None for size in sizes],
        "world_size": trainer.world_size,
        "trainer": dict(trainer_facts(trainer)),
        "starts_at": {"epoch": trainer.current_epoch, "global_step": trainer.global_step},
        "overrides": [*gradient_overrides(module), *gradient_callbacks(trainer.callbacks)],
    }


def _host_version() -> str:
    """Return the version of the Lightning that trains: ``lightning`` and ``pytorch_lightning`` may both be there."""
    return _version("lightning") or _version("pytorch-lightning")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return getattr(sys.modules.get(package.replace("-", "_")), "__version__", "")


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
