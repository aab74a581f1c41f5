"""The objects of a Trainer that modules look into, as far as a record knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from torch import nn

from lightning_sgdinf.errors import TrainerAttributeError
from lightning_sgdinf.log import ParamGroup
from lightning_sgdinf.replay.silent import loaded_class


def refuse(what: str) -> NoReturn:
    """Say that something of the Trainer is not in the record.

    Raises:
        TrainerAttributeError: Always.
    """
    raise TrainerAttributeError(
        f"the step reads {what}, which is not part of the record, so it cannot be taken again faithfully. Keep what "
        "the step needs on the module instead: a number or a small tensor that a hook such as on_train_start or "
        "on_train_batch_start puts on self is recorded with every step."
    )


class Part:
    """An object of which some attributes are known; asking for others is an error with their full name.

    Args:
        path: Its place, ``"trainer.strategy"``.
        kind: Qualified name of the class it stands for, for ``isinstance``; counts where that class is loaded.
        known: Its attributes.
    """

    def __init__(self, path: str, kind: str = "", **known: Any) -> None:
        self.__dict__.update(known)
        self.__dict__["_path"], self.__dict__["_kind"] = path, kind

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return loaded_class(self.__dict__["_kind"]) or Part

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(f"{self.__dict__['_path']}.{name}")


def part_of_kind(path: str, kind: str) -> Part | None:
    """Return what stands for an object of a class of which nothing is known; ``None`` where there was none."""
    return Part(path, kind) if kind else None


def bases_of(kind: str) -> tuple[type, ...]:
    """Return a class with its bases, where it is loaded."""
    loaded = loaded_class(kind)
    return () if loaded is None else loaded.__mro__


class Metrics(Mapping[str, Any]):
    """Metrics that were logged, of which the record has no values: each name is there, and using its value is an error.

    Args:
        path: Its place, ``"trainer.callback_metrics"``.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __getitem__(self, name: str) -> Any:
        return UnknownNumber(f"{self._path}[{name!r}]")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class UnknownNumber:
    """A number that may be logged and printed; computing with it is an error that names it.

    Args:
        path: Its place.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"<{self._path}: not recorded>"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def detach(self) -> UnknownNumber:
        """Return it: detached, moved or copied it is as unknown."""
        return self

    cpu = clone = float = double = item = detach

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(f"{self._path}.{name}")


for _name in (
    *("eq", "ne", "lt", "le", "gt", "ge", "bool", "int", "index", "float", "neg", "abs"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "rpow"),
):
    setattr(UnknownNumber, f"__{_name}__", lambda self, *args: refuse(self._path))


def optimizer_of(kind: str, groups: Sequence[ParamGroup], named: Mapping[str, nn.Parameter]) -> Part:
    """Return the optimizer with the param groups of a step, to be read.

    Args:
        kind: Qualified class name.
        groups: Of the step.
        named: The module's parameters by name.
    """
    described = [{"params": [named[n] for n in g.params if n in named], **g.options} for g in groups]
    optimizer = Part("trainer.optimizers[0]", kind, param_groups=described)
    optimizer.__dict__["optimizer"] = optimizer
    return optimizer


def scheduler_config(number: int, known: Mapping[str, Any], groups: Sequence[ParamGroup]) -> Part:
    """Return the configuration of a learning-rate scheduler, with the rates of a step.

    Args:
        number: Its place.
        known: What the record knows of it.
        groups: Of the step.
    """
    path = f"trainer.lr_scheduler_configs[{number}]"
    rates = [g.options["lr"] for g in groups if "lr" in g.options]
    scheduler = Part(
        f"{path}.scheduler", str(known.get("class", "")), get_last_lr=lambda: list(rates), _last_lr=rates, step=_nothing
    )
    return Part(path, scheduler=scheduler, **{k: v for k, v in known.items() if k != "class"})


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing: the rates of every step are in the record."""
    del args, kwargs


def strategy_of(kind: str, *, world_size: int, **known: Any) -> Part:
    """Return the strategy; among several processes, what they exchange is not known.

    Args:
        kind: Qualified class name.
        world_size: Number of processes.
        known: Its attributes.
    """
    alone: dict[str, Callable[..., Any]] = {
        "barrier": lambda *args, **kwargs: None,
        "broadcast": lambda obj, *args, **kwargs: obj,
        "reduce": lambda tensor, *args, **kwargs: tensor,
        "all_gather": lambda tensor, *args, **kwargs: tensor,
        "reduce_boolean_decision": lambda decision, *args, **kwargs: decision,
    }
    shared = {"barrier": alone["barrier"], "broadcast": alone["broadcast"]}
    name = getattr(loaded_class(kind), "strategy_name", kind.rpartition(".")[2])
    return Part(
        "trainer.strategy",
        kind,
        world_size=world_size,
        strategy_name=name,
        block_backward_sync=contextlib.nullcontext,
        no_backward_sync=contextlib.nullcontext,
        **(alone if world_size == 1 else shared),
        **known,
    )


def fit_loop_of(
    *, epoch: int, global_step: int, batch_idx: int, batches: int | None, last: bool | None, facts: Mapping[str, Any]
) -> Part:
    """Return the loops of a fit with their counters.

    Args:
        epoch: Present epoch.
        global_step: Steps taken.
        batch_idx: Index of the batch at hand.
        batches: Batches per epoch, where that is known.
        last: Whether it is the last batch of the epoch, where that is known.
        facts: Settings of the Trainer.
    """
    path = "trainer.fit_loop"
    done = {} if batches is None else {"total": epoch * batches + batch_idx}

    def progress(inner: str, current: int, total: int | None, **more: Any) -> Part:
        place = f"{path}.{inner}"

        def counters(name: str, value: int | None) -> Part:
            if value is None:
                return Part(f"{place}.{name}")
            return Part(f"{place}.{name}", ready=value + 1, started=value + 1, processed=value, completed=value)

        return Part(place, current=counters("current", current), total=counters("total", total), **more)

    flag = {} if last is None else {"is_last_batch": last}
    known = {n: facts[n] for n in ("max_steps", "min_steps", "accumulate_grad_batches") if n in facts}
    totals = {"total_batch_idx": done["total"]} if done else {}
    epoch_loop = Part(
        f"{path}.epoch_loop",
        batch_idx=batch_idx,
        global_step=global_step,
        _batches_that_stepped=global_step,
        batch_progress=progress("epoch_loop.batch_progress", batch_idx, done.get("total"), **flag),
        **totals,
        **known,
    )
    limits = {n: facts[n] for n in ("max_epochs", "min_epochs", "max_steps", "min_steps") if n in facts}
    return Part(
        path,
        epoch_loop=epoch_loop,
        epoch_progress=progress("epoch_progress", epoch, epoch),
        batch_idx=batch_idx,
        restarting=False,
        **({} if batches is None else {"max_batches": batches}),
        **totals,
        **limits,
    )
