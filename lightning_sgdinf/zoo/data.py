"""A data module over images in memory: split, label noise, augmentation, loaders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.images import ImageSource, LabelledImages
from lightning_sgdinf.zoo.label_noise import NoisyLabels, flip_labels
from lightning_sgdinf.zoo.splits import split_ids


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels as a map-style data set.

    Args:
        images: Float ``[N, C, H, W]``.
        labels: Int64 ``[N]``.
        crop_padding: Pixels of zeros around an image before a random crop of its own size is taken from it; 0 for no
            augmentation. The place of the crop is drawn from torch's global generator, so a replay finds it again.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, crop_padding: int = 0) -> None:
        self.images = images
        self.labels = labels
        self.crop_padding = crop_padding

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._crop(self.images[index]), self.labels[index]

    def _crop(self, image: Tensor) -> Tensor:
        if not self.crop_padding:
            return image
        height, width = image.shape[-2:]
        top, left = torch.randint(0, 2 * self.crop_padding + 1, (2,)).tolist()
        padded = F.pad(image, (self.crop_padding,) * 4)
        return padded[..., top : top + height, left : left + width]


class ImageData(LightningDataModule):
    """Train, validation and test loaders over a source of images, with label noise on the training part if asked for.

    In a configuration::

        _target_: lightning_sgdinf.zoo.ImageData
        source:
          _target_: lightning_sgdinf.zoo.Digits
        val_size: 300
        test_size: 497
        label_noise: 0.1

    Args:
        source: Where the images come from.
        train_size: Training examples; ``None`` for all that validation and test leave.
        val_size: Validation examples, taken from the source's training part.
        test_size: Test examples; from the source's own test part (``None``: all of it) or, if it has none, from its
            training part.
        label_noise: Part of the training labels to change to another class, in ``[0, 1]``.
        crop_padding: Augment the training images by random crops after padding with so many pixels.
        batch_size: Training examples per batch.
        eval_batch_size: Validation and test examples per batch.
        seed: Of the split, the noise and the order of training examples.
        num_workers: Worker processes of the training loader.

    Raises:
        ConfigurationError: The sizes do not fit the source.
    """

    train_set: ImageDataset
    val_set: ImageDataset
    test_set: ImageDataset
    flipped: Tensor | None
    true_labels: Tensor

    def __init__(
        self,
        source: ImageSource,
        *,
        train_size: int | None = None,
        val_size: int = 300,
        test_size: int | None = None,
        label_noise: float = 0.0,
        crop_padding: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        pool, test = source.read()
        train, val, test = _parts(pool, test, train_size=train_size, val_size=val_size, test_size=test_size, seed=seed)
        noisy = flip_labels(train.labels, fraction=label_noise, classes=len(pool.class_names), seed=seed)
        self.class_names = pool.class_names
        self.true_labels = noisy.true_labels
        self.flipped = noisy.flipped if label_noise > 0 else None
        self.train_set = _dataset(train, noisy, crop_padding)
        self.val_set = ImageDataset(val.images, val.labels)
        self.test_set = ImageDataset(test.images, test.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train_set.images.shape[1:]
        return channels, height, width

    def image(self, index: int) -> Tensor:
        """Training image ``index`` as it is, without augmentation, ``[C, H, W]`` in ``[0, 1]``."""
        return self.train_set.images[index]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled; every new loader gives the same order."""
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """In order."""
        return DataLoader(self.val_set, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """In order."""
        return DataLoader(self.test_set, batch_size=self.eval_batch_size)


def _dataset(train: LabelledImages, noisy: NoisyLabels, crop_padding: int) -> ImageDataset:
    return ImageDataset(train.images, noisy.labels, crop_padding=crop_padding)


def _parts(
    pool: LabelledImages,
    test: LabelledImages | None,
    *,
    train_size: int | None,
    val_size: int,
    test_size: int | None,
    seed: int,
) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """Validation first, so that it stays the same whatever the other sizes are."""
    if test is None:
        if not test_size:
            raise ConfigurationError("test_size: this source has no test part of its own, so a size > 0 is needed")
        from_pool = test_size
    else:
        from_pool = 0
    rest = len(pool) - val_size - from_pool
    val_ids, test_ids, train_ids = split_ids(
        len(pool), [val_size, from_pool, rest if train_size is None else train_size], seed=seed
    )
    if test is None:
        return pool.subset(train_ids), pool.subset(val_ids), pool.subset(test_ids)
    if test_size is not None:
        test = test.subset(split_ids(len(test), [test_size], seed=seed)[0])
    return pool.subset(train_ids), pool.subset(val_ids), test
