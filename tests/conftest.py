"""What all tests share: one thread, fixed seeds, and where the benchmark data lie."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile(
    "steady", deadline=None, derandomize=True
)  # no clock and no luck decides whether a test passes
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir(repository: Path) -> Path:
    """Folder with the benchmark data sets: ``SGDINF_DATA_DIR``, else ``../shared/data``."""
    named = os.environ.get("SGDINF_DATA_DIR")
    folder = Path(named) if named else repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no benchmark data: {folder} does not exist (set SGDINF_DATA_DIR)")
    return folder
