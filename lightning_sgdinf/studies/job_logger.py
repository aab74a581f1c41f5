"""The run of a study in a Lightning logger: one per seed, with its settings from the start."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from lightning_sgdinf.studies.job import Parts, main_groups


def begin_run(parts: Parts, folder: Path, *, kind: str, cell: str, ignored: Container[str]) -> Any:
    """Return the logger that the configuration names, with the seed's settings logged: mistakes show at once.

    Args:
        parts: The objects of the configuration.
        folder: Of the seed; a logger that would keep its files in the folder of all seeds keeps them here.
        kind: Name of the study, which takes the place of the estimator: none ranks here alone.
        cell: Name of the cell.
        ignored: Groups of the configuration that the job does not read.

    Returns:
        The logger; ``None`` if there is none.
    """
    if parts.logger is None:
        return None
    given, estimator = parts.config.get("logger", {}), str(parts.choices.get("estimator"))
    changed: dict[str, Any] = {}
    if given.get("save_dir") == parts.config.get("output_dir"):
        changed["save_dir"] = str(folder)
    if given.get("job_type") == estimator:
        changed["job_type"] = kind
        if estimator in str(given.get("name")):
            changed["name"] = f"{cell}-{kind}-seed{parts.seed}"
        if estimator in (tags := given.get("tags") or ()):
            changed["tags"] = [kind if tag == estimator else tag for tag in tags]
    folder.mkdir(parents=True, exist_ok=True)  # W&B complains of a place that is not there yet
    logger = parts.logger(**changed)
    groups = {group: choice for group, choice in main_groups(parts.choices).items() if group not in ignored}
    logger.log_hyperparams({"seed": parts.seed, "cell": cell, **groups, "config": dict(parts.config)})
    return logger
