"""The results of one run of a study, as a file beside its other results, so that runs can be merged.

A run belongs to a *cell*: everything about it but the seed and the method that ranks. Runs of one cell are repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.cache import Json, flatten, read_json, replace_json

FILE = "results.json"
FORMAT = 1
_MOST_NAMES, _HUGE = 1000, 1e100


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trained model on held-out data.

    Attributes:
        test_error: Share of wrongly classified test examples.
        test_loss: Mean test loss.
        chosen_by: Held-out value that a choice may use; ``None`` if there is none.
        seconds: Wall time of the training; ``None`` if it was not taken.
    """

    test_error: float
    test_loss: float | None = None
    chosen_by: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Training again without so many of the examples that a method finds most harmful.

    Attributes:
        method: That ranks.
        mode: How it was trained again.
        count: Examples left out; 0 with an empty method: none.
        measured: The outcome.
    """

    method: str
    mode: str
    count: int
    measured: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A number of examples that a strategy chose without looking at the test set.

    Attributes:
        method: That ranks.
        mode: How it was trained again.
        strategy: That chose.
        count: Examples left out or relabelled.
        before: Test error with nothing changed.
        after: Test error with its choice.
    """

    method: str
    mode: str
    strategy: str
    count: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCost:
    """The cost of a method's scores, and how well they detect examples known to be corrupt.

    Attributes:
        seconds: Wall time; ``None`` if unknown.
        read_bytes: Bytes of recorded states that the method reads; ``None`` if unknown.
        auroc: Of detecting the corrupt examples; ``None`` if none are known.
        average_precision: Likewise.
        failed: Reason why it gave no scores; empty if it did.
    """

    seconds: float | None = None
    read_bytes: int | None = None
    auroc: float | None = None
    average_precision: float | None = None
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """The results of one run.

    Attributes:
        cell: Name of the cell.
        seed: Of the run.
        settings: What tells the cell from others.
        training: Seconds, steps, bytes of the recorded training.
        methods: By name.
        points: Those with ``count`` 0 and no method are the base of their mode.
        choices: Of strategies.
        harmful: Ids of the most harmful examples by method, the worst first; their pictures are in ``found.npz``.
        definitions: Digests of the definitions behind its names: ``run``, ``method <name>``, ``mode <name>``,
            ``strategy <name>``. Empty in files that older versions wrote.
        place: The folder it was read from; not part of the file.
    """

    cell: str
    seed: int
    settings: Mapping[str, Json] = field(default_factory=dict)
    training: Mapping[str, float] = field(default_factory=dict)
    methods: Mapping[str, MethodCost] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    choices: tuple[Choice, ...] = ()
    harmful: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    place: Path | None = None

    def save(self, folder: Path) -> None:
        """Write it into a folder, in place of earlier results."""
        about = {"format": FORMAT, **asdict(self)}
        about["found"] = about.pop("harmful")  # the file's own name for it
        del about["place"]
        replace_json(folder / FILE, about)

    @classmethod
    def load(cls, file: Path) -> RunResults:
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: The file is something else.
        """
        try:
            about = read_json(file)
            if about.pop("format") != FORMAT:
                raise ValueError("another format")
            about["methods"] = {name: _checked(MethodCost(**cost)) for name, cost in about["methods"].items()}
            about["points"] = tuple(_checked(_point(point)) for point in about["points"])
            about["choices"] = tuple(_checked(Choice(**choice)) for choice in about["choices"])
            about["harmful"] = {name: tuple(map(_whole, ids)) for name, ids in about.pop("found").items()}
            run = cls(**about, place=file.parent)
            names = {name for point in (*run.points, *run.choices) for name in (point.method, point.mode)}
            if len(names) + len(run.methods) > _MOST_NAMES:
                raise ValueError(f"{len(names)} methods and modes")
            _ = flatten(run.settings), _whole(run.seed), dict(run.definitions)  # each is an error of another form
            if not all(isinstance(number, (int, float)) and abs(number) < _HUGE for number in run.training.values()):
                raise ValueError(f"training is {run.training!r:.80}")
            if not isinstance(run.cell, str) or not isinstance(run.settings, dict):
                raise TypeError("a cell without name or settings")
            return run
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{file}: expected results of a run in format {FORMAT}, got something else ({error}); remove it or "
                "move it away: the results that it was made from stay"
            ) from error

    def joined(self, other: RunResults) -> RunResults:
        """Return this run with the results that another one of the same cell and seed has beyond it.

        Names that stand for something else there than here, by ``definitions``, are left out; all of them, if the
        recorded run is another one.
        """
        other = other._without({n for n, mine in self.definitions.items() if other.definitions.get(n, mine) != mine})
        points = {(p.mode, p.method, p.count): p for p in (*other.points, *self.points)}
        choices = {(c.mode, c.method, c.strategy): c for c in (*other.choices, *self.choices)}
        return replace(
            self,
            methods={**other.methods, **self.methods},
            points=tuple(points.values()),
            choices=tuple(choices.values()),
            harmful={**other.harmful, **self.harmful},
            definitions={**other.definitions, **self.definitions},
        )

    def _without(self, names: AbstractSet[str]) -> RunResults:
        """Return this run without the results of some names of ``definitions``."""

        def stays(**parts: str) -> bool:
            return "run" not in names and names.isdisjoint(f"{kind} {name}" for kind, name in parts.items())

        return replace(
            self,
            methods={m: cost for m, cost in self.methods.items() if stays(method=m)},
            points=tuple(p for p in self.points if stays(method=p.method, mode=p.mode)),
            choices=tuple(c for c in self.choices if stays(method=c.method, mode=c.mode, strategy=c.strategy)),
            harmful={m: ids for m, ids in self.harmful.items() if stays(method=m)},
            definitions={} if "run" in names else {n: of for n, of in self.definitions.items() if n not in names},
        )


def _checked(value: Any) -> Any:
    """Return a part of some results whose numbers are finite and whose texts are texts."""
    for member in fields(value):
        held = getattr(value, member.name)
        if is_dataclass(held):
            _checked(held)
        elif member.type == "str" or isinstance(held, str):
            if member.type != "str" or not isinstance(held, str):
                raise TypeError(f"{member.name} is {held!r:.80}")
        elif member.name == "count":
            _whole(held)
        elif held is None:
            if "None" not in str(member.type):
                raise ValueError(f"{member.name} is missing")
        elif not isinstance(held, (int, float)) or (
            not abs(held) < _HUGE and (isinstance(held, int) or member.name in ("test_error", "before", "after"))
        ):
            raise ValueError(f"{member.name} is {held!r:.80}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(f"{value!r:.80} is no count")
    return value


def _point(about: dict[str, Any]) -> Point:
    return Point(**{**about, "measured": Measured(**about["measured"])})
