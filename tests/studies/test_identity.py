"""Digests under which an earlier release cached results: as it wrote them, for the files that it came with."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_sgdinf.studies.cache import digest
from lightning_sgdinf.studies.identity import identity_of
from lightning_sgdinf.updates import CounterfactualReplay
from tests.tasks.test_configuration import composed

WRITTEN = {
    ("retrain", "last_epochs"): "cbfa157b03b8bc58",
    ("retrain", "all"): "2d2eec4d822b26c6",
    ("retrain", "scratch"): "1ed59e25a574f75b",
    ("estimator", "koh_liang"): "360a1b7456ddf959",
    ("estimator", "last_epochs"): "3dbca7fe92a67ec5",
}


@pytest.mark.parametrize(("group", "name"), WRITTEN)
def test_results_of_earlier_releases_keep_their_digest(group: str, name: str, tmp_path: Path) -> None:
    node = OmegaConf.to_container(composed(tmp_path, f"{group}={name}")[group], resolve=True)
    assert digest(identity_of(node)) == WRITTEN[group, name]


def test_addresses_are_no_identity() -> None:
    assert "replace_second" in identity_of(repr(CounterfactualReplay()))
    assert " at 0x" not in identity_of(repr(CounterfactualReplay()))
