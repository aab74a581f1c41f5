"""STL-10 from its binary files.

An image is 3 x 96 x 96 bytes: all red pixels, then green, then blue, each column by column. Labels are single bytes
from 1 to 10.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_sgdinf.zoo.compressed import damaged, read_whole
from lightning_sgdinf.zoo.file_set import FileSet
from lightning_sgdinf.zoo.images import LabelledImages

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96
IMAGE = 3 * SIDE * SIDE


class Stl10:
    """The labelled part: 96 x 96 colour images in ten classes, 5,000 to train on and 8,000 to test on.

    The four files (``train_X.bin``, ``train_y.bin``, ``test_X.bin``, ``test_y.bin``; plain, ``.gz`` or ``.xz``) are
    looked for in ``<data_dir>/stl10``, in ``<data_dir>/stl10_binary``, which is what the makers' archive unpacks to,
    and in ``data_dir`` itself if it has one of these names.

    In a configuration::

        source:
          _target_: lightning_sgdinf.zoo.Stl10
          data_dir: ${data_dir}

    Args:
        data_dir: Folder of the data sets.
    """

    def __init__(self, data_dir: str | Path) -> None:
        self.data_dir = Path(data_dir).expanduser()

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Read the training part ``[5000, 3, 96, 96]`` and the test part ``[8000, 3, 96, 96]``, pixels as bytes.

        Raises:
            ConfigurationError: The files are not there, or damaged.
        """
        files = self._files().require()
        return _labelled(*files[:2]), _labelled(*files[2:])

    def _files(self) -> FileSet:
        return FileSet.of_archive(
            self.data_dir,
            dataset="stl10",
            unpacked="stl10_binary",
            names=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
            address="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        )


def _labelled(image_file: Path, label_file: Path) -> LabelledImages:
    pixels, labels = read_whole(image_file), np.frombuffer(read_whole(label_file), np.uint8)
    if len(pixels) % IMAGE or not pixels:
        raise damaged(image_file, len(pixels), f"expected images of {IMAGE:,} bytes, but the file ends within one")
    if len(labels) != len(pixels) // IMAGE:
        raise damaged(label_file, len(labels), f"expected {len(pixels) // IMAGE:,} labels, got {len(labels):,}")
    if (wrong := np.flatnonzero((labels < 1) | (labels > len(CLASSES)))).size:
        raise damaged(label_file, int(wrong[0]), f"expected a label of 1 to 10, got {labels[wrong[0]]}")
    columns = np.frombuffer(pixels, np.uint8).reshape(-1, 3, SIDE, SIDE)
    return LabelledImages(
        images=torch.from_numpy(np.ascontiguousarray(columns.swapaxes(2, 3))),
        labels=torch.from_numpy(labels.astype(np.int64) - 1),
        class_names=CLASSES,
    )
