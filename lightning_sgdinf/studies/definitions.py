"""Definitions behind the results of a folder, so that none on disk is taken for that of another run or method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_sgdinf.atomic_write import locked
from lightning_sgdinf.studies.cache import Json, check_settings, flatten, read_json, replace_json
from lightning_sgdinf.studies.identity import identity_of
from lightning_sgdinf.studies.job import Parts

OF_A_RUN = ("dataset", "model", "optimizer", "trainer")
"""Groups of the configuration that make a run ..."""
OF_NO_RUN = {
    *("seed", "data_dir", "num_workers", "default_root_dir", "accelerator", "devices", "strategy"),
    *("enable_progress_bar", "progress"),
}
"""... but for these keys: those of a seed or a machine, and what is shown meanwhile."""


def settings_of(config: Mapping[str, Json], groups: tuple[str, ...] = OF_A_RUN) -> dict[str, Json]:
    """Return the settings of some groups of a configuration, without those that a seed or a machine changes."""
    return {group: _without(config[group]) for group in groups if group in config}


def pin_definitions(
    file: Path, parts: Parts, names: Mapping[str, Mapping[str, object]], *, folder: Path | None = None
) -> None:
    """Pin what the run is and what names stand for, so that no result on disk is of another run or method.

    Args:
        file: Holds them.
        parts: What the configuration says.
        names: Objects by kind and name, kinds as they are called in the configuration below ``job``. What the
            configuration does not hold is known by its ``repr``.
        folder: Of the results, for the message; the file's if ``None``.

    Raises:
        ConfigurationError: One was something else when there were results of it.
    """
    job: Mapping[str, Json] = parts.config.get("job") or {}
    with locked(file):
        pinned: dict[str, Json] = read_json(file) if file.is_file() else {}

        def check(key: str, node: Json, instead: str) -> None:
            settings = {k: v for k, v in flatten(node).items() if k.rpartition(".")[2] not in OF_NO_RUN}
            known = pinned.get(key) or settings  # an earlier release knew some definitions by no setting at all
            check_settings(folder or file.parent, known, settings, instead=instead)
            pinned[key] = known

        check("run", identity_of(settings_of(parts.config)), "another output_dir")
        for kind, own in names.items():
            for name, of in own.items():
                node = (job.get(kind) or {}).get(name) or {"is": repr(of)}
                check(f"{kind}.{name}", identity_of(node), f"another name than {name}, another output_dir")
        replace_json(file, pinned)


def _without(node: Json) -> Json:
    if isinstance(node, Mapping):
        return {key: _without(value) for key, value in node.items() if key not in OF_NO_RUN}
    return [_without(item) for item in node] if isinstance(node, list) else node
