"""Results on disk are never taken for those of another run or method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.cache import check_settings
from lightning_sgdinf.studies.definitions import pin_definitions
from lightning_sgdinf.studies.job import Parts
from tests.studies.test_lds import parts

CONFIG: dict[str, Any] = {
    "dataset": {"train_size": 80, "seed": 0, "data_dir": "here"},
    "model": {"_target_": "net"},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "trainer": {"max_epochs": 2, "gradient_clip_val": None, "enable_progress_bar": False, "default_root_dir": "out"},
    "job": {"methods": {"one": {"_target_": "update", "epochs": 1}, "two": {"_target_": "update", "seed": 3}}},
}


@dataclass(frozen=True)
class Method:
    """Known by its settings."""

    epochs: int = 1


class Nameless:
    """Known by its class: its repr has an address."""


def changed(key: str, value: Any) -> dict[str, Any]:
    def of(node: dict[str, Any], place: list[str]) -> dict[str, Any]:
        return {**node, place[0]: of(node.get(place[0], {}), place[1:]) if place[1:] else value}

    return of(CONFIG, key.split("."))


@pytest.fixture
def given(tmp_path: Path) -> Parts:
    return replace(parts(tmp_path), config=CONFIG)


def pin(given: Parts, *names: str, config: dict[str, Any] | None = None) -> None:
    own = given if config is None else replace(given, config=config)
    pin_definitions(given.folder / "definitions.json", own, {"methods": {name: Method() for name in names}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer._target_", "torch.optim.AdamW"),
        ("trainer.gradient_clip_val", 1.0),
        ("dataset.train_size", 81),
        ("model.width", 4),
        ("job.methods.one.epochs", 2),
    ],
)
def test_other_settings_are_refused(given: Parts, key: str, value: Any) -> None:
    pin(given, "one")
    pin(given, "one", "two")
    with pytest.raises(ConfigurationError, match=rf"{key.removeprefix('job.methods.one.')}: .* there, {value} now"):
        pin(given, "one", config=changed(key, value))
    pin(given, "one")
    if key.startswith("job"):
        pin(given, "two", config=changed(key, value))


@pytest.mark.parametrize(
    "key",
    [
        *("dataset.seed", "dataset.data_dir", "trainer.enable_progress_bar", "trainer.default_root_dir"),
        *("trainer.accelerator", "job.methods.two.seed", "output_dir", "logger.name"),
    ],
)
def test_what_changes_no_result_may_change(given: Parts, key: str) -> None:
    pin(given, "one", "two")
    pin(given, "one", "two", config=changed(key, "another"))


def test_objects_that_no_configuration_names_are_known_by_what_they_are(given: Parts) -> None:
    given = replace(given, config={})
    file = given.folder / "definitions.json"
    pin_definitions(file, given, {"methods": {"a": Method(), "b": Nameless()}})
    pin_definitions(file, given, {"methods": {"a": Method(), "b": Nameless()}})
    with pytest.raises(ConfigurationError, match=r"Method\(epochs=1\) there, Method\(epochs=2\) now.*name than a"):
        pin_definitions(file, given, {"methods": {"a": Method(2)}})
    with pytest.raises(ConfigurationError, match="another name than b"):
        pin_definitions(file, given, {"methods": {"b": Method()}})


def test_results_that_were_begun_in_a_terminal_go_on_without_one(tmp_path: Path) -> None:
    old, new = ({"trainer": {"max_epochs": 2, **more}} for more in ({"enable_progress_bar": True}, {}))
    check_settings(tmp_path, old, new)
    with pytest.raises(ConfigurationError, match="max_epochs: 2 there, 3 now"):
        check_settings(tmp_path, old, {"trainer": {"max_epochs": 3}})
