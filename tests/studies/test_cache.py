from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from lightning_sgdinf.atomic_write import locked, replace_bytes
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.cache import load_or_compute, pin_settings, read_json


def test_a_piece_is_made_once_and_again_if_it_no_longer_holds(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(len(made))
        return {"number": made[-1]}

    place = tmp_path / "deep" / "piece.json"
    assert load_or_compute(place, make) == load_or_compute(place, make) == {"number": 0}
    assert load_or_compute(place, make, is_valid=lambda content: content["number"] == 1) == {"number": 1}
    assert made == [0, 1]


def test_making_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load_or_compute(tmp_path / "piece.json", lambda: 1 / 0)
    assert not (tmp_path / "piece.json").exists()
    with pytest.raises(TypeError):
        replace_bytes(tmp_path / "piece.json", "text")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == [".piece.json.lock"]


def _append(place: Path) -> None:
    with locked(place):
        count = int(place.read_text()) if place.exists() else 0
        place.write_text(str(count + 1))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "count"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(place,)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert place.read_text() == "6"


def test_a_folder_has_one_set_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    pin_settings(file, {"epochs": 2, "grid": (1, 2)})
    pin_settings(file, {"grid": [1, 2], "epochs": 2})
    with pytest.raises(ConfigurationError, match=r"epochs: 2 there, 3 now"):
        pin_settings(file, {"epochs": 3, "grid": [1, 2]})
    assert read_json(file)["epochs"] == 2
