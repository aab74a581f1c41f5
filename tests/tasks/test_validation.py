from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.tasks.validation import check_targets


class Thing:
    def __init__(
        self,
        size: int,
        *,
        rate: float = 0.1,
        mode: Literal["a", "b"] = "a",
        path: str | Path = "x",
        grid: Sequence[int] | None = None,
        inner: Thing | None = None,
        untyped=None,
    ) -> None: ...


def anything(**options: int) -> None: ...


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = type(sys)("things_for_configuration")
    module.Thing, module.anything = Thing, anything  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "things_for_configuration", module)


def thing(**arguments: object) -> dict[str, object]:
    return {"_target_": "things_for_configuration.Thing", "size": 3, **arguments}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"rate": 1},
        {"rate": 1e-3},
        {"mode": "b"},
        {"grid": [1, 2]},
        {"grid": None},
        {"path": "folder/file"},
        {"untyped": object},
        {"inner": {"_target_": "things_for_configuration.Thing", "size": 1}},
    ],
)
def test_what_fits_passes(arguments: dict[str, object]) -> None:
    check_targets({"a": {"b": [thing(**arguments)]}})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rat": 0.1}, r"part.rat: .*Thing has no argument 'rat'; did you mean 'rate'\?.*It takes: size, rate"),
        ({"rate": "abc"}, r"part.rate: expected float, got 'abc' \(str\)"),
        ({"size": 2.5}, r"part.size: expected int, got 2.5 \(float\)"),
        ({"size": True}, r"part.size: expected int, got True"),
        ({"mode": "c"}, r"part.mode: expected 'a' or 'b', got 'c'"),
        ({"inner": 3}, r"part.inner: expected Thing or null, got 3"),
        ({"grid": 3}, r"part.grid: expected a list of whole numbers, as \[10,30\] or null, got 3"),
        ({"grid": ["x"]}, r"part.grid: expected"),
        ({"inner": {"_target_": "things_for_configuration.Thing"}}, r"part.inner: .*Thing needs size"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_targets({"part": thing(**arguments)})


def test_missing_arguments_are_allowed_in_a_partial() -> None:
    check_targets({"_target_": "things_for_configuration.Thing", "_partial_": True})
    with pytest.raises(ConfigurationError, match="needs size"):
        check_targets({"part": {"_target_": "things_for_configuration.Thing"}})


def test_open_signatures_take_anything() -> None:
    check_targets({"_target_": "things_for_configuration.anything", "whatever": 1})


@pytest.mark.parametrize("name", ["things_for_configuration.Nothing", "no_such_package.Thing", "nonsense"])
def test_unknown_targets_are_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"part: cannot import '{name}'"):
        check_targets({"part": {"_target_": name}})
