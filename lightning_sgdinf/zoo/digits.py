"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn; no download."""

from __future__ import annotations

import torch

from lightning_sgdinf.extras import require
from lightning_sgdinf.zoo.images import LabelledImages

PIXEL_MAXIMUM = 16.0


class Digits:
    """UCI's optical digits, test part, as shipped with scikit-learn.

    In a configuration::

        source:
          _target_: lightning_sgdinf.zoo.Digits
    """

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Read all images ``[1797, 1, 8, 8]``; there is no test part of their own.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        data = require("sklearn.datasets", extra="cli").load_digits()
        images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1) / PIXEL_MAXIMUM
        labels = torch.as_tensor(data.target, dtype=torch.int64)
        return LabelledImages(images=images, labels=labels, class_names=tuple("0123456789")), None
