"""Recording a script that is not changed: the environment variable ``SGDINF_RECORD``.

::

    SGDINF_RECORD=runs/mnist.tlog python train.py
    SGDINF_RECORD='runs/mnist.tlog?keep=every(10)&overwrite=true' python train.py

Lightning asks `callbacks` for more callbacks whenever a Trainer is made, in every program of the Python environment
this package is installed in. Without the variable the answer is an empty list, and nothing is imported for it.
"""

from __future__ import annotations

import os
from typing import Any

import lightning_sgdinf
from lightning_sgdinf.errors import ConfigurationError

VARIABLE = "SGDINF_RECORD"

_CHOICES = {"true": True, "false": False}
_TEXTS = ("keep", "codec", "resume", "when_full")
_SWITCHES = ("overwrite", "store_batches", "digest_batches", "strict")
_recorders: dict[str, Any] = {}  # one per value: a second fit of the process is recorded beside the first


def callbacks() -> list[Any]:
    """Return the callbacks that the environment asks for: a `TrajectoryRecorder`, or none.

    Raises:
        ConfigurationError: The variable is not ``path`` or ``path?option=value&...``, or an option has no such value.
    """
    value = os.environ.get(VARIABLE, "")
    if not value:
        return []
    if value not in _recorders:
        path, options = parse(value)
        _recorders[value] = lightning_sgdinf.TrajectoryRecorder(path, **options)
    return [_recorders[value]]


def parse(value: str) -> tuple[str, dict[str, Any]]:
    """Return path and options of a `TrajectoryRecorder`.

    Args:
        value: ``path``, or ``path?option=value&option=value``.

    Raises:
        ConfigurationError: The value has no path, or an option that is unknown or malformed.
    """
    path, _, query = value.partition("?")
    if not path.strip():
        raise _wrong(value, "there is no path before the '?'")
    options: dict[str, Any] = {}
    for pair in query.split("&") if query else ():
        name, equals, text = pair.partition("=")
        if name not in (*_TEXTS, *_SWITCHES):
            raise _wrong(value, f"there is no option {name!r}, only {', '.join((*_TEXTS, *_SWITCHES))}")
        if not equals or not text or name in options:
            raise _wrong(value, f"{name} needs one value")
        if name in _SWITCHES and text.lower() not in _CHOICES:
            raise _wrong(value, f"{name} is true or false, not {text!r}")
        options[name] = _CHOICES[text.lower()] if name in _SWITCHES else text
    return path, options


def _wrong(value: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{VARIABLE}={value!r}: {reason}. Expected the path of a log, with options of TrajectoryRecorder if need be: "
        f"{VARIABLE}='runs/mine.tlog?keep=every(10)&overwrite=true'; unset it to record nothing."
    )
