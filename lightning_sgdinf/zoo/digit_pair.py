"""Two digits of MNIST as vectors of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_sgdinf.zoo.binary import BinaryExamples
from lightning_sgdinf.zoo.mnist import Mnist


class DigitPair:
    """Images of one digit (0) and of another (1), as pixels in ``[0, 1]``.

    In a configuration::

        dataset:
          _target_: lightning_sgdinf.zoo.DigitPair
          data_dir: ${data_dir}
          digits: [1, 7]
          skip: 5000

    Args:
        data_dir: Folder of the data sets, see `Mnist`.
        digits: Which two.
        skip: Images at the beginning of MNIST's training part to leave out. Readers of the time kept 5,000 for
            validation.
        download: Ask OpenML when there are no files.
    """

    def __init__(
        self, data_dir: str | Path, *, digits: tuple[int, int] = (1, 7), skip: int = 5000, download: bool = True
    ) -> None:
        self.source = Mnist(data_dir, download=download)
        self.digits = digits
        self.skip = skip

    def read(self) -> BinaryExamples:
        """Read the images of the training part, the first digit's before the second's.

        Raises:
            ConfigurationError: The files are not there and could not be fetched, or are damaged.
        """
        images, _ = self.source.read()
        parts = [(images.labels[self.skip :] == digit).nonzero()[:, 0] + self.skip for digit in self.digits]
        chosen = images.images[torch.cat(parts)].flatten(1).double().numpy()
        labels = np.repeat([0, 1], [len(part) for part in parts])
        return BinaryExamples(inputs=chosen, labels=labels, class_names=(str(self.digits[0]), str(self.digits[1])))
