"""A path with fields, filled in when a fit begins: ``runs/{name}-{version}.tlog``."""

from __future__ import annotations

import glob
import string
from pathlib import Path
from typing import Any

from lightning_sgdinf.errors import ConfigurationError

FIELDS = ("name", "version")


class PathTemplate:
    """The path of a log, with fields or without.

    ``{name}`` is the name of the Trainer's logger, or the class of the module where there is no logger; ``{version}``
    the logger's version, or without a logger the first number at which nothing is.

    Args:
        text: The path as the caller wrote it.

    Raises:
        ConfigurationError: A field of another name, or braces that do not match.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            self._fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
        except ValueError as error:
            raise ConfigurationError(f"path {text!r}: {error}; write {{{{ and }}}} for braces") from error
        if unknown := sorted(self._fields - set(FIELDS)):
            raise ConfigurationError(
                f"path {text!r}: expected the fields {{name}} and {{version}}, got {{{unknown[0]}}}; write {{{{ "
                "and }}}} for braces"
            )

    @property
    def has_fields(self) -> bool:
        """True if a fit decides the path."""
        return bool(self._fields)

    def filled(self, trainer: Any, module: Any) -> Path:
        """Return the path for a fit that is about to begin."""
        logger = trainer.logger
        name = str(getattr(logger, "name", None) or type(module).__name__).replace("/", "-")
        version = None if logger is None else logger.version
        if isinstance(version, int):
            version = f"version_{version}"  # as the loggers name their folders
        if version is None and "version" in self._fields:
            number = 0
            while self._with(name, f"version_{number}").exists():
                number += 1
            version = f"version_{number}"
        return self._with(name, str(version or "").replace("/", "-"))

    def present(self) -> list[Path]:
        """Return all paths of this form at which there is something."""
        if not self._fields:
            return []
        parts = string.Formatter().parse(self._text)
        pattern = "".join(glob.escape(text) + ("" if field is None else "*") for text, field, _, _ in parts)
        return [Path(path) for path in sorted(glob.glob(pattern))]

    def _with(self, name: str, version: str) -> Path:
        return Path(self._text.format(name=name, version=version))
