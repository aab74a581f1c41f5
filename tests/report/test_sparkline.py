from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report.sparkline import HEIGHT, WIDTH, harm_per_epoch, sparkline_png, sparkline_text

ORANGE, BLUE = (213, 94, 0, 255), (0, 114, 178, 255)


def drawn(harm: list[float]) -> np.ndarray:
    with Image.open(io.BytesIO(sparkline_png(harm))) as image:
        return np.asarray(image.convert("RGBA"))


def count(image: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((image == colour).all(-1).sum())


def test_harm_is_positive_whichever_way_the_query_points() -> None:
    assert harm_per_epoch([-2.0, 1.0], "lower").tolist() == [2.0, -1.0]
    assert harm_per_epoch([-2.0, 1.0], "higher").tolist() == [-2.0, 1.0]
    with pytest.raises(ConfigurationError, match=r"expected shape \[E\]"):
        harm_per_epoch([], "lower")


def test_bars_are_as_long_as_their_epochs_harmed_or_helped() -> None:
    image = drawn([4.0, -2.0, 0.0, 1.0])
    assert image.shape == (HEIGHT, WIDTH, 4)
    harmed, helped = (image == ORANGE).all(-1), (image == BLUE).all(-1)
    assert not harmed[: HEIGHT // 2].any(), "harm is below"
    assert not helped[HEIGHT // 2 :].any()
    lengths = [int(harmed[:, 30 * i + 5].sum() - helped[:, 30 * i + 5].sum()) for i in range(4)]
    longest = HEIGHT // 2 - 1
    assert lengths == [longest, -round(longest / 2), 0, round(longest / 4)]


def test_nothing_is_left_out_of_many_epochs() -> None:
    harm = np.zeros(1000)
    harm[777] = 1.0
    assert count(drawn(harm.tolist()), ORANGE) > 0
    assert count(drawn([0.0]), ORANGE) == 0


def test_in_words() -> None:
    assert sparkline_text([0.0, 7.0, 3.0]) == "█▁▅", "low where it harmed"
    assert sparkline_text([2.0, 2.0]) == "▁▁"
