"""Configurations checked against the constructors they name, before anything is built.

A node with ``_target_`` holds the arguments of a class or function. Its signature is the schema: no second list of
names and types has to be kept. Types are judged where they are simple (numbers, strings, booleans, paths, literals,
sequences of these, unions of them); others are left to the constructor.
"""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.suggestion import suggestion

TARGET = "_target_"
_SEQUENCES = (list, tuple, Sequence, Collection)
_ITEMS = {int: " of whole numbers, as [10,30]", float: " of numbers, as [0.1,0.3]", str: " of names, as [one,two]"}
OF_HYDRA = {TARGET, "_partial_", "_args_", "_recursive_", "_convert_"}


def check_targets(config: Any, where: str = "") -> None:
    """Check every node that names a target.

    Args:
        config: Resolved configuration as plain dicts and lists.
        where: Its place, for messages, e.g. ``"trainer"``.

    Raises:
        ConfigurationError: A target that cannot be imported, an unknown or missing argument, or one of another type.
    """
    if isinstance(config, Mapping):
        if TARGET in config:
            _check_call(config, where)
        for key, value in config.items():
            check_targets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, list):
        for position, value in enumerate(config):
            check_targets(value, f"{where}[{position}]")


def _check_call(config: Mapping[str, Any], where: str) -> None:
    name = config[TARGET]
    try:
        target: Callable[..., Any] = get_object(name)
    except Exception as error:  # whatever importing a third-party module raises
        raise ConfigurationError(f"{where}: cannot import {name!r} ({error}); correct {where}.{TARGET}") from error
    parameters = arguments_of(target)
    given = [key for key in config if key not in OF_HYDRA]
    for key in given:
        if key not in parameters and not _takes_any(target):
            raise ConfigurationError(
                f"{where}.{key}: {name} has no argument {key!r}{suggestion(key, parameters)} It takes: "
                f"{', '.join(parameters) or 'none'}. ~{where}.{key} takes it out."
            )
    if not config.get("_partial_"):
        missing = [key for key, p in parameters.items() if p.default is p.empty and key not in given]
        if missing and not config.get("_args_"):
            raise ConfigurationError(f"{where}: {name} needs {', '.join(missing)}; give {where}.{missing[0]}=...")
    hints = _hints(target)
    for key in given:
        wanted = hints.get(key, Any)
        nested = isinstance(config[key], Mapping)
        if not nested and not _fits(config[key], wanted):
            raise ConfigurationError(
                f"{where}.{key}: expected {_named(wanted)}, got {config[key]!r} ({type(config[key]).__name__})"
            )


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # written in C: nothing is known
        return inspect.signature(lambda *args, **kwargs: None)


def arguments_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments that a class or function takes by name."""
    return {
        name: parameter
        for name, parameter in _signature(target).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _takes_any(target: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _signature(target).parameters.values())


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # names that exist for type checkers only
        return {}


def _fits(value: Any, wanted: Any) -> bool:
    """Return ``True`` if a plain value may be given for a type, or the type is not a simple one."""
    return any(_fits_one(value, kind) for kind in _alternatives(wanted))


def _fits_one(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind in (Path, os.PathLike):
        return isinstance(value, str)
    if isinstance(kind, type) and isinstance(value, (str, int, float)) and not issubclass(kind, Enum):
        return isinstance(value, kind)  # any other class: a file holds no tensors
    if origin in _SEQUENCES and isinstance(value, (int, float, bool, str)):
        return False
    if origin in _SEQUENCES and isinstance(value, list):
        items = [item for item in typing.get_args(kind) if item is not Ellipsis]
        return not items or all(any(_fits(one, item) for item in items) for one in value)
    return True


def _alternatives(wanted: Any) -> Iterator[Any]:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        for one in typing.get_args(wanted):
            yield from _alternatives(one)
    else:
        yield wanted


def _named(wanted: Any) -> str:
    names = []
    for kind in _alternatives(wanted):
        if typing.get_origin(kind) is typing.Literal:
            names += [repr(option) for option in typing.get_args(kind)]
        elif typing.get_origin(kind) in _SEQUENCES:
            items = [_ITEMS[item] for item in typing.get_args(kind) if item in _ITEMS]
            names.append(f"a list{items[0] if items else ''}")
        else:
            names.append("null" if kind is type(None) else getattr(kind, "__name__", str(kind)))
    return " or ".join(names)
