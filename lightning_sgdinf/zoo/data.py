"""A data module over images in memory: split, label noise, augmentation, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.augmentation import random_crop, random_flip
from lightning_sgdinf.zoo.images import ImageSource, LabelledImages
from lightning_sgdinf.zoo.label_noise import LabelNoise, SymmetricNoise
from lightning_sgdinf.zoo.splits import split_ids


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels as a map-style data set; items are float images, normalised, and labels.

    Args:
        images: ``[N, C, H, W]``, bytes or float in ``[0, 1]``.
        labels: Int64 ``[N]``.
        crop_padding: Black pixels on every side of an image before a random crop of its own size is taken from it; 0
            for none. The place of the crop is drawn from torch's global generator, so a replay finds it again.
        flip: Exchange left and right, of each image with probability 1/2, drawn likewise.
        mean: Taken from the pixels of each channel at last, ``[C]``; ``None`` for 0.
        std: What they are divided by then, ``[C]``; ``None`` for 1.

    Raises:
        ConfigurationError: Mean and standard deviation do not fit the channels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        crop_padding: int = 0,
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.crop_padding = crop_padding
        self.flip = flip
        self.mean = _per_channel("mean", mean, images.shape[1])
        self.std = _per_channel("std", std, images.shape[1])
        if self.std is not None and not bool((self.std > 0).all()):
            raise ConfigurationError(f"std: expected numbers > 0, got {std}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.crop_padding:
            image = random_crop(image, self.crop_padding)
        if self.flip:
            image = random_flip(image)
        image = _as_float(image)
        if self.mean is not None:
            image = image - self.mean
        if self.std is not None:
            image = image / self.std
        return image, self.labels[index]

    def pixels(self, index: int) -> Tensor:
        """Return image ``index`` as it is, neither augmented nor normalised, float ``[C, H, W]`` in ``[0, 1]``."""
        return _as_float(self.images[index])

    def shown(self, index: int) -> Tensor:
        """Return `pixels`, which a person would look at."""
        return self.pixels(index)

    def unaugmented(self) -> ImageDataset:
        """Return the same examples without random changes."""
        plain = copy(self)
        plain.crop_padding, plain.flip = 0, False
        return plain

    def augmenting(self, other: ImageDataset) -> ImageDataset:
        """Return the examples of another data set with this one's random changes."""
        changed = copy(other)
        changed.crop_padding, changed.flip = self.crop_padding, self.flip
        return changed


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
        label_noise: What makes training labels wrong, or the part of them to change to any other class, in ``[0, 1]``.
        crop_padding: Augment the training images by random crops after padding with so many pixels.
        flip: Augment them by exchanging left and right, of each with probability 1/2.
        mean: Taken from the pixels of each channel, in all parts; one number per channel, ``None`` for 0.
        std: What they are divided by then, likewise; ``None`` for 1.
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
        label_noise: float | LabelNoise = 0.0,
        crop_padding: int = 0,
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
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
        ids, val, test = _parts(pool, test, train_size=train_size, val_size=val_size, test_size=test_size, seed=seed)
        train = pool.subset(ids)
        noise = label_noise if isinstance(label_noise, LabelNoise) else SymmetricNoise(label_noise)
        noisy = noise.apply(train.labels, ids=ids, class_names=pool.class_names, seed=seed)
        self.class_names = pool.class_names
        self.true_labels = noisy.true_labels
        self.flipped = noisy.flipped if bool(noisy.flipped.any()) else None
        self.train_set = ImageDataset(
            train.images, noisy.labels, crop_padding=crop_padding, flip=flip, mean=mean, std=std
        )
        self.val_set = ImageDataset(val.images, val.labels, mean=mean, std=std)
        self.test_set = ImageDataset(test.images, test.labels, mean=mean, std=std)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train_set.images.shape[1:]
        return channels, height, width

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape that networks are made for: `image_shape`."""
        return self.image_shape

    def image(self, index: int) -> Tensor:
        """Return training image ``index`` as it is, neither augmented nor normalised, ``[C, H, W]`` in ``[0, 1]``."""
        return self.train_set.pixels(index)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a shuffled loader; every new one gives the same order."""
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader in order."""
        return DataLoader(self.val_set, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader in order."""
        return DataLoader(self.test_set, batch_size=self.eval_batch_size)


def _as_float(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float() / 255


def _per_channel(name: str, values: Sequence[float] | None, channels: int) -> Tensor | None:
    if values is None:
        return None
    if len(values) != channels:
        raise ConfigurationError(f"{name}: expected one number per channel ({channels}), got {list(values)}")
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _parts(
    pool: LabelledImages,
    test: LabelledImages | None,
    *,
    train_size: int | None,
    val_size: int,
    test_size: int | None,
    seed: int,
) -> tuple[Tensor, LabelledImages, LabelledImages]:
    """Return the ids of the training part, the validation part and the test part; validation is drawn first, so that it
    stays the same whatever the other sizes are."""
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
        return train_ids, pool.subset(val_ids), pool.subset(test_ids)
    if test_size is not None:
        test = test.subset(split_ids(len(test), [test_size], seed=seed)[0])
    return train_ids, pool.subset(val_ids), test
