"""Small made-up data sets, written byte by byte in the formats of the real ones."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def cifar10_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images ``[N, 3, 32, 32]`` with the labels 0 1 2 ... 9 0 1 ..."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8), np.arange(count) % 10


def write_cifar10(folder: Path, count: int = 4, *, suffix: str = "") -> None:
    """Six files with so many images each; file ``k`` has those of seed ``k``, the test file of seed 6."""
    folder.mkdir(parents=True)
    for number in range(1, 7):
        images, labels = cifar10_images(count, number)
        records = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
        name = "test_batch.bin" if number == 6 else f"data_batch_{number}.bin"
        (folder / (name + suffix)).write_bytes(PACKED[suffix](records))


def write_stl10(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """The same images ``[N, 3, 96, 96]`` and labels from 1 on for training and for test, stored column by column."""
    folder.mkdir(parents=True)
    pixels = bytearray()
    for image in images:
        for channel in image:
            for column in range(channel.shape[1]):
                pixels += channel[:, column].tobytes()
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(bytes(pixels))
        (folder / f"{part}_y.bin").write_bytes(bytes(labels.tolist()))


def human_labels(clean: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of CIFAR-10N for some clean labels: ``worse`` differs in every second place, ``aggre`` nowhere."""
    worse = np.where(np.arange(len(clean)) % 2, (clean + 3) % 10, clean)
    others = {f"random_label{i}": (clean + (np.arange(len(clean)) % (2 + i) == 0)) % 10 for i in (1, 2, 3)}
    labels = {"clean_label": clean, "aggre_label": clean, "worse_label": worse, **others}
    return {name: array.astype(np.uint8) for name, array in labels.items()}


def write_cifar10n(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "cifar10n_labels.npz", **arrays)
