"""MNIST and Fashion-MNIST: from IDX files where there are any, else through scikit-learn from OpenML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.compressed import damaged
from lightning_sgdinf.zoo.fetching import fetch
from lightning_sgdinf.zoo.file_set import FileSet
from lightning_sgdinf.zoo.idx import read_idx
from lightning_sgdinf.zoo.images import LabelledImages

TRAIN_SIZE = 60_000
CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

Variant = Literal["mnist", "fashion-mnist"]

_CLASS_NAMES: dict[str, tuple[str, ...]] = {"mnist": tuple("0123456789"), "fashion-mnist": CLOTHES}
_OPENML: dict[str, str] = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}
_TORCHVISION: dict[str, str] = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_ADDRESSES: dict[str, str] = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
}
_FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


class Mnist:
    """28 x 28 images in ten classes, 60,000 to train on and 10,000 to test on.

    The four files (``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``,
    ``t10k-labels-idx1-ubyte``; plain, ``.gz`` or ``.xz``) are looked for in ``<data_dir>/<variant>``, in torchvision's
    ``<data_dir>/MNIST/raw``, and in ``data_dir`` itself. Without them the data are fetched from OpenML once and kept in
    ``<data_dir>/openml``.

    In a configuration::

        source:
          _target_: lightning_sgdinf.zoo.Mnist
          data_dir: ${data_dir}
          variant: fashion-mnist

    Args:
        data_dir: Folder of the data sets.
        variant: ``"mnist"`` or ``"fashion-mnist"``.
        download: Ask OpenML when there are no files.

    Raises:
        ConfigurationError: The variant is unknown.
    """

    def __init__(self, data_dir: str | Path, *, variant: Variant = "mnist", download: bool = True) -> None:
        if variant not in _CLASS_NAMES:
            raise ConfigurationError(f"variant: expected one of {', '.join(_CLASS_NAMES)}, got {variant!r}")
        self.data_dir = Path(data_dir).expanduser()
        self.variant = variant
        self.download = download

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Read the training part ``[60000, 1, 28, 28]`` and the test part ``[10000, 1, 28, 28]``.

        Raises:
            ConfigurationError: The files are not there and could not be fetched, or are damaged.
        """
        if (files := self._files().find()) is not None:
            arrays = [_read_labels(file) if "labels" in file.name else read_idx(file) for file in files]
            return self._labelled(*arrays[:2]), self._labelled(*arrays[2:])
        images, labels = self._fetch()
        return self._labelled(images[:TRAIN_SIZE], labels[:TRAIN_SIZE]), self._labelled(
            images[TRAIN_SIZE:], labels[TRAIN_SIZE:]
        )

    def _files(self) -> FileSet:
        own = self.data_dir / self.variant
        torchvision = self.data_dir / _TORCHVISION[self.variant] / "raw"
        named_as_variant = self.data_dir.name in (self.variant, "raw")
        return FileSet(
            dataset=self.variant,
            names=_FILES,
            folders=(own, torchvision, *((self.data_dir,) if named_as_variant else ())),
            command=f"curl -fL --create-dirs --remote-name-all --output-dir {own} "
            f'"{_ADDRESSES[self.variant]}/{{{",".join(_FILES)}}}.gz"',
        )

    def _fetch(self) -> tuple[np.ndarray, np.ndarray]:
        missing = self._files().missing()
        if not self.download:
            raise ConfigurationError(missing)
        try:
            images, labels = fetch(
                "fetch_openml",
                _OPENML[self.variant],
                version=1,
                data_home=self.data_dir / "openml",
                return_X_y=True,
                as_frame=False,
                parser="liac-arff",
            )
        except (OSError, ValueError) as error:  # no network, no answer, or an answer that is no data set
            raise ConfigurationError(f"{missing}\nFetching it from OpenML failed, too ({error}).") from error
        return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.uint8)

    def _labelled(self, images: np.ndarray, labels: np.ndarray) -> LabelledImages:
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise ConfigurationError(
                f"{self.variant}: expected images [N, 28, 28] and labels [N], got {images.shape} and {labels.shape}"
            )
        return LabelledImages(
            images=torch.from_numpy(images).unsqueeze(1).float() / 255,
            labels=torch.from_numpy(labels).long(),
            class_names=_CLASS_NAMES[self.variant],
        )


def _read_labels(file: Path) -> np.ndarray:
    labels = read_idx(file)
    if (wrong := np.flatnonzero(labels > 9)).size:
        start = 4 + 4 * labels.ndim
        raise damaged(file, start + int(wrong[0]), f"expected a label of 0 to 9, got {labels.flat[wrong[0]]}")
    return labels
