"""Arguments that are not what is expected: each error says what was expected, what came, and what to write."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_sgdinf.errors import ConfigurationError


def whole_number(value: Any, name: str, *, least: int) -> int:
    """Return a count.

    Args:
        value: As given.
        name: Of the argument, for the message.
        least: The smallest that makes sense.

    Raises:
        ConfigurationError: It is no whole number, or below ``least``.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        advice = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise ConfigurationError(f"{name}: expected a whole number of at least {least}, got {value!r}{advice}")
    if value < least:
        raise ConfigurationError(f"{name}: expected a whole number of at least {least}, got {value}")
    return int(value)


def one_of(value: Any, name: str, *allowed: Any) -> Any:
    """Return a value that must be one of a few.

    Args:
        value: As given.
        name: Of the argument, for the message.
        allowed: The values that it can have, two at least.

    Raises:
        ConfigurationError: It is another.
    """
    if value not in allowed:
        shown = [repr(one) for one in allowed]
        raise ConfigurationError(f"{name}: expected {', '.join(shown[:-1])} or {shown[-1]}, got {value!r}")
    return value


def require_instance(value: Any, name: str, methods: Sequence[str], examples: Sequence[str]) -> None:
    """Refuse a class, a name or anything else that cannot be what an argument is for.

    Args:
        value: As given.
        name: Of the argument, for the message.
        methods: Of which it must have one.
        examples: Names of classes that can be meant.

    Raises:
        ConfigurationError: It is no instance; says what to write.
    """
    if isinstance(value, str):
        plain = {example.lower(): example for example in examples}
        meant = difflib.get_close_matches(value.replace("_", "").lower(), plain, n=1)
        example = plain[meant[0]] if meant else examples[0]
        raise ConfigurationError(f"{name}: expected an object, got the name {value!r}; write {name}={example}(...)")
    if inspect.isclass(value):
        raise ConfigurationError(
            f"{name}: expected an object, got the class {value.__name__}; write {name}={value.__name__}(...)"
        )
    if not any(callable(getattr(value, method, None)) for method in methods):
        raise ConfigurationError(
            f"{name}: expected an object with {' or '.join(methods)}, such as {examples[0]}(...), got "
            f"{type(value).__name__}"
        )


def path_of(path: Any, name: str = "path") -> str | os.PathLike[str]:
    """Return a path.

    Raises:
        ConfigurationError: It is none; says what to give.
    """
    if isinstance(path, (str, os.PathLike)):
        return path
    advice = "; write recorder=..." if hasattr(path, "on_train_start") else ", such as 'runs/first.tlog'"
    raise ConfigurationError(f"{name}: expected a path, got {type(path).__name__}{advice}")


def check_given(model: Any, train_dataloaders: Any, val_dataloaders: Any, log: Any) -> None:
    """Check that what is given for a recorded run can be what it is given for.

    Args:
        model: The LightningModule that was trained.
        train_dataloaders: As given to ``Trainer.fit``.
        val_dataloaders: As given to ``Trainer.fit``.
        log: Path of the record, or an open one.

    Raises:
        ConfigurationError: One of them cannot be; says what to write.
    """
    _require_model(model)
    _require_log(log)
    _require_loaders(train_dataloaders, "train_dataloaders")
    _require_loaders(val_dataloaders, "val_dataloaders")


def _require_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, (str, os.PathLike)):
        advice = f"got the path {str(model)!r}; load it: MyModule.load_from_checkpoint({str(model)!r})"
    elif inspect.isclass(model):
        advice = f"got the class {model.__name__}; make one, {model.__name__}(...): its weights are not read"
    else:
        advice = f"got {type(model).__name__}"
    raise ConfigurationError(f"model: expected the LightningModule that was trained, {advice}")


def _require_log(log: Any) -> None:
    if isinstance(log, (str, os.PathLike)) or (hasattr(log, "header") and hasattr(log, "step")):
        return
    path = getattr(log, "path", None)
    advice = f"; give its path: log={str(path)!r}" if isinstance(path, (str, os.PathLike)) else ""
    raise ConfigurationError(f"log: expected the path of a record, or an open one, got {type(log).__name__}{advice}")


def _require_loaders(loaders: Any, name: str) -> None:
    if hasattr(loaders, "__getitem__") and hasattr(loaders, "__len__") and not hasattr(loaders, "__iter__"):
        raise ConfigurationError(
            f"{name}: expected a loader, got the data set {type(loaders).__name__}; write DataLoader(data_set, "
            "batch_size=...), as for Trainer.fit"
        )
