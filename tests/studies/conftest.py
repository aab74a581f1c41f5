from __future__ import annotations

from tests.tasks.conftest import in_folder as in_folder
