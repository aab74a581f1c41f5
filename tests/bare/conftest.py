"""These tests need an environment with the package and pytest alone: ``make bare``. Elsewhere they are not collected.

There, pytest ends with an error where nothing is collected, so that an extra that slips in is seen.
"""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = ("cleanlab", "matplotlib", "pandas", "pyarrow", "rich", "scipy", "sklearn", "tensorboard", "wandb")

collect_ignore_glob = ["test_*.py"] if any(map(find_spec, EXTRAS)) else []
