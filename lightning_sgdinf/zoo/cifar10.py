"""CIFAR-10 from its binary files.

A file is a sequence of records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue pixels, row by
row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_sgdinf.zoo.compressed import damaged, read_whole
from lightning_sgdinf.zoo.file_set import FileSet
from lightning_sgdinf.zoo.images import LabelledImages

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + 3 * 32 * 32
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


class Cifar10:
    """32 x 32 colour images in ten classes, 50,000 to train on and 10,000 to test on.

    The six files of the binary version (``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin``; plain,
    ``.gz`` or ``.xz``) are looked for in ``<data_dir>/cifar10``, in ``<data_dir>/cifar-10-batches-bin``, which is what
    the makers' archive unpacks to, and in ``data_dir`` itself if it has one of these names.

    In a configuration::

        source:
          _target_: lightning_sgdinf.zoo.Cifar10
          data_dir: ${data_dir}

    Args:
        data_dir: Folder of the data sets.
    """

    def __init__(self, data_dir: str | Path) -> None:
        self.data_dir = Path(data_dir).expanduser()

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Read the training part ``[50000, 3, 32, 32]`` and the test part ``[10000, 3, 32, 32]``, pixels as bytes.

        Raises:
            ConfigurationError: The files are not there, or damaged.
        """
        *train, test = self._files().require()
        return _joined(train), _joined([test])

    def _files(self) -> FileSet:
        return FileSet.of_archive(
            self.data_dir,
            dataset="cifar10",
            unpacked="cifar-10-batches-bin",
            names=(*TRAIN_FILES, "test_batch.bin"),
            address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        )


def _joined(files: list[Path]) -> LabelledImages:
    records = np.concatenate([read_records(file) for file in files])
    return LabelledImages(
        images=torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)),
        labels=torch.from_numpy(records[:, 0].astype(np.int64)),
        class_names=CLASSES,
    )


def read_records(file: Path) -> np.ndarray:
    """Read the records of a file, uint8 ``[N, 3073]``.

    Raises:
        ConfigurationError: The file is damaged; says where.
    """
    data = read_whole(file)
    if len(data) % RECORD or not data:
        raise damaged(file, len(data), f"expected records of {RECORD} bytes, but the file ends within one")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if (wrong := np.flatnonzero(records[:, 0] >= len(CLASSES))).size:
        raise damaged(file, int(wrong[0]) * RECORD, f"expected a label of 0 to 9, got {records[wrong[0], 0]}")
    return records
