from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import Stl10
from tests.zoo.files import write_stl10


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (3, 3, 96, 96)).astype(np.uint8)


def test_reads_what_was_written(tmp_path: Path, images: np.ndarray) -> None:
    write_stl10(tmp_path / "stl10_binary", images, np.array([1, 10, 4]))
    for data_dir in (tmp_path, tmp_path / "stl10_binary"):
        for part in Stl10(data_dir).read():
            assert part is not None
            np.testing.assert_array_equal(part.images.numpy(), images)
            assert [part.class_names[label] for label in part.labels] == ["airplane", "truck", "cat"]


def test_missing_and_damaged_files(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(
        ConfigurationError, match=r"(?s)stl10: there is no train_X\.bin in .*stl10_binary.*curl .*tar -xz"
    ):
        Stl10(tmp_path).read()
    write_stl10(tmp_path / "stl10", images, np.array([1, 10, 4]))
    pixels, labels = tmp_path / "stl10" / "train_X.bin", tmp_path / "stl10" / "test_y.bin"
    for wrong, says in (
        (b"\1\2", r"test_y\.bin, byte 2: expected 3 labels, got 2"),
        (b"\1\2\0", r"test_y\.bin, byte 2: expected a label of 1 to 10, got 0"),
        (b"\1\x0b\1", r"test_y\.bin, byte 1: expected a label of 1 to 10, got 11"),
    ):
        labels.write_bytes(wrong)
        with pytest.raises(ConfigurationError, match=says):
            Stl10(tmp_path).read()
    pixels.write_bytes(pixels.read_bytes()[:-5])
    with pytest.raises(ConfigurationError, match=r"train_X\.bin, byte 82,939: expected images of 27,648 bytes"):
        Stl10(tmp_path).read()
