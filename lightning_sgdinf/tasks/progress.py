"""Progress of a job of a sweep, on disk: a sweep that was stopped and is started again in its folder goes on."""

from __future__ import annotations

from pathlib import Path

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.cache import read_json, replace_json

FILE = "job.json"


class JobProgress:
    """A job's note of its progress.

    Args:
        folder: The job's.
        config: Its configuration as text; a job with another one is another job.

    Attributes:
        begun: This very job was begun before.
        result: Its result, if it was done.

    Raises:
        ConfigurationError: The folder is that of a job with another configuration.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self._file, self._config = folder / FILE, config
        known = read_json(self._file) if self._file.is_file() else {}
        self.begun = known.get("config") == config
        if known and not self.begun:
            there = set(str(known.get("config")).splitlines())
            differ = [line.strip() for line in config.splitlines() if line not in there]
            raise ConfigurationError(
                f"{folder} has the job of a sweep with other settings (now {', '.join(differ[:3]) or 'fewer'}); it "
                "was left as it is. Choose another hydra.sweep.dir, or remove that folder"
            )
        self.result: float | None = known.get("result") if self.begun else None

    def begin(self) -> None:
        """Note that it has begun."""
        self._note(None)

    def end(self, result: float) -> None:
        """Note its result."""
        self.result = result
        self._note(result)

    def _note(self, result: float | None) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_json(self._file, {"config": self._config, "result": result})
