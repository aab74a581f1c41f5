from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lightning_sgdinf.report.embedded_data import characters
from lightning_sgdinf.report.thumbnails import ACROSS, Sheets, take_extremes, thumbnails


def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)


def size(sheets: Sheets | None) -> int:
    assert sheets is not None
    return sum(characters(len(file)) for file in sheets.files)


def cell(sheets: Sheets, place: int) -> np.ndarray:
    sheet = np.asarray(Image.open(io.BytesIO(sheets.files[place // ACROSS**2])))
    line, column = divmod(place % ACROSS**2, ACROSS)
    rows, columns = line * sheets.height, column * sheets.width
    return sheet[rows : rows + sheets.height, columns : columns + sheets.width]


def test_where_there_is_room_pictures_are_as_they_were() -> None:
    ids = [5, 3, 100, *range(200, 270)]
    sheets = thumbnails(ids, noise, room=10**6)
    assert sheets is not None
    assert sheets.ids == tuple(ids)
    assert len(sheets.files) == 2
    for place in (0, 2, 63, 64, 72):
        assert (cell(sheets, place)[:, :, 0] == noise(ids[place])).all()


def test_with_less_room_they_are_worse_but_all_there() -> None:
    ids = list(range(128))
    best = thumbnails(ids, noise, room=10**6)
    sheets = thumbnails(ids, noise, room=size(best) // 2)
    assert sheets is not None
    assert sheets.ids == tuple(ids)
    assert size(sheets) <= size(best) // 2
    assert cell(sheets, 3).shape[:2] == (20, 20)
    assert not (cell(sheets, 3)[:, :, 0] == noise(3)).all()


def test_with_still_less_those_at_the_ends_are_kept() -> None:
    ids = list(range(320, 0, -1))
    room = 30_000
    sheets = thumbnails(ids, noise, room=room)
    assert sheets is not None
    assert size(sheets) <= room
    assert 64 <= len(sheets.ids) < 320
    assert list(sheets.ids) == take_extremes(ids, len(sheets.ids))
    assert {320, 319, 1, 2} <= set(sheets.ids)
    assert 160 not in sheets.ids


def test_no_room_and_no_pictures_are_no_sheets() -> None:
    assert thumbnails([], noise, room=10**6) is None
    assert thumbnails([1, 2], noise, room=50) is None


def test_pictures_of_different_kinds_share_sheets() -> None:
    pictures = {
        0: np.full((30, 10), 200, np.uint8),
        1: np.dstack([np.full((10, 30), level, np.uint8) for level in (255, 0, 0)]),
        2: np.dstack([np.full((4, 4), level, np.uint8) for level in (0, 0, 0, 0)]),
        3: np.zeros((300, 100), np.uint8),
    }
    sheets = thumbnails([0, 1, 2, 3], pictures.__getitem__, room=10**6)
    assert sheets is not None
    assert max(sheets.width, sheets.height) == 64
    assert cell(sheets, 0)[sheets.height // 2, sheets.width // 2].tolist() == [200] * 3
    assert (cell(sheets, 2) == 255).all()  # transparent: onto white
    assert cell(sheets, 3)[0, sheets.width // 2].tolist() == [0] * 3


@pytest.mark.parametrize(
    ("count", "kept"), [(0, []), (1, [0]), (2, [0, 4]), (3, [0, 1, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_both_ends(count: int, kept: list[int]) -> None:
    assert take_extremes(range(5), count) == kept
