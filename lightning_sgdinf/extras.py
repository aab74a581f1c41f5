"""Packages that only some parts need.

They are imported where they are used; one that is missing is answered with the exact command that installs it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from lightning_sgdinf.errors import MissingExtraError

DISTRIBUTION = "lightning-sgdinf"


def require(module: str, *, extra: str) -> ModuleType:
    """Import a module that comes with one of this package's extras.

    Args:
        module: Name of the module, e.g. ``"pandas"`` or ``"matplotlib.figure"``.
        extra: Name of the extra that installs it, e.g. ``"cli"``.

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise  # it is there, but broken: another package is missing, and says so better itself
        raise MissingExtraError(
            f'this needs {package}, which is not installed; install it with: pip install "{DISTRIBUTION}[{extra}]"'
        ) from error
