"""The location of a fit's record: a new log, or the one that a checkpoint belongs to."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_sgdinf.errors import ConfigurationError, LogExistsError
from lightning_sgdinf.log import Header
from lightning_sgdinf.record.path_template import PathTemplate
from lightning_sgdinf.record.resume import Bookmark, Continuation, NoLogError, continued_header, find_continuation
from lightning_sgdinf.record.writer import Writer

RESUME_MODES = ("auto", "require", "never")


class LogLocation:
    """Finds the location for each fit of a recorder.

    Args:
        path: As the user wants it, perhaps with fields; see `PathTemplate`.
        overwrite: Replace a log that is there.
        resume: One of `RESUME_MODES`.

    Raises:
        ConfigurationError: There is no such mode, or no such field.

    Attributes:
        path: Of the present log.
        continued: The log that goes on, if one does.
        run_id: Of the log that was opened last.
        usable: When the last checkpoint was saved from which it can go on.
        end: Bookmark of the end of the last fit that has ended, if it left a step in the log.
        bookmarks: Of the checkpoint that the coming fit starts from; ``None`` if it starts from none.
    """

    def __init__(self, path: str, *, overwrite: bool, resume: str) -> None:
        if resume not in RESUME_MODES:
            modes = ", ".join(map(repr, RESUME_MODES))
            raise ConfigurationError(f"resume is {resume!r}, expected one of {modes}")
        self._template = PathTemplate(path)
        self.path = self._first_path = Path(path)
        self.continued: Continuation | None = None
        self.run_id = self.usable = ""
        self.bookmarks: Sequence[Bookmark] | None = None
        self.end: Bookmark | None = None
        self._overwrite, self._resume = overwrite, resume
        self._logs = 0

    def find(self, trainer: Any, module: Any) -> tuple[Path, Continuation | None]:
        """Return the location for the coming fit; `take` it.

        Args:
            trainer: Of the fit; its logger has a name and a version.
            module: Whose class is the name where there is no logger.

        Raises:
            LogExistsError: The path is taken.
            ResumeError: The log does not go as far as the checkpoint, or went another way.
            LogLockedError: Another process is writing the log.
        """
        if self._template.has_fields:
            first = self._template.filled(trainer, module)
            self._logs = self._logs if first == self._first_path else 0
            self._first_path = first
        if self.bookmarks is not None and self._resume != "never":
            numbered = sorted(self._first_path.parent.glob(_every_number(self._first_path)))
            try:
                paths = (self._first_path, *numbered, *self._template.present())
                continuation = find_continuation(paths, self.bookmarks, tell=rank_zero_warn)
            except NoLogError as error:
                if self._resume == "require":
                    raise
                rank_zero_warn(
                    f"This fit is recorded in a log of its own, which begins with the present step: {error}."
                )
            else:
                return continuation.path, continuation
        return self._free_path(), None

    def take(self, path: Path, continued: Continuation | None) -> None:
        """Take what `find` returned for the location."""
        self.path, self.continued = path, continued

    def open(self, writer: Callable[..., Writer], header: Header, steps: int, **options: Any) -> Writer:
        """Open the log and return its writer.

        Args:
            writer: Makes it.
            header: Of the fit.
            steps: That are in the log.
            options: More for the writer.

        Raises:
            ResumeError: The log that goes on is of another model, optimizer or data set.
        """
        if self.continued is not None:
            header = continued_header(self.continued.header, header, self.continued.bookmark)
            options["continue_at"] = steps
        else:
            options["overwrite"] = self._overwrite
            if self._logs:
                rank_zero_info(f"TrajectoryRecorder: this fit is recorded in {self.path}, beside the one before.")
        self._logs += 1
        self.run_id, self.usable = header.run_id, ""
        return writer(self.path, header=header, **options)

    def _free_path(self) -> Path:
        """Return the path of a new log: never one at which this recorder has written before."""
        path, number = self._first_path, self._logs + 1
        if self._logs:
            path = _numbered(self._first_path, number)
            while path.exists() and not self._overwrite:
                number += 1
                path = _numbered(self._first_path, number)
        elif path.exists() and not self._overwrite:
            raise LogExistsError(
                f"{path} exists, and a log is never overwritten unasked. Choose another path, pass overwrite=True, or "
                "resume the run from its checkpoint: fit(..., ckpt_path=...) goes on in its log."
            )
        return path


def _every_number(path: Path) -> str:
    return f"{glob.escape(path.stem)}-*{glob.escape(path.suffix)}"


def _numbered(path: Path, number: int | str) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
