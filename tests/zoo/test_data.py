from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import (
    AsymmetricNoise,
    Digits,
    ImageData,
    ImageDataset,
    LabelledImages,
    flip_labels,
    split_ids,
)


class Numbered:
    """Image ``i`` is filled with ``i``, so that one sees where it went."""

    def __init__(self, count: int, test_count: int = 0) -> None:
        self.count, self.test_count = count, test_count

    def read(self) -> tuple[LabelledImages, LabelledImages | None]:
        return self.images(0, self.count), self.images(1000, self.test_count) if self.test_count else None

    @staticmethod
    def images(first: int, count: int) -> LabelledImages:
        ids = torch.arange(first, first + count)
        images = ids.float()[:, None, None, None].expand(-1, 1, 4, 4).clone()
        return LabelledImages(images=images, labels=ids % 3, class_names=("a", "b", "c"))


def ids_of(dataset: ImageDataset) -> list[int]:
    return dataset.images[:, 0, 0, 0].int().tolist()


def epoch(loader: DataLoader[tuple[Tensor, Tensor]]) -> list[int]:
    return [int(value) for images, _ in loader for value in images[:, 0, 0, 0]]


def test_parts_are_disjoint_and_complete() -> None:
    parts = split_ids(50, [10, 15, 25], seed=3)
    assert [len(p) for p in parts] == [10, 15, 25]
    assert sorted(torch.cat(parts).tolist()) == list(range(50))
    assert all(torch.equal(p, p.sort().values) for p in parts)


def test_an_earlier_part_does_not_depend_on_later_ones() -> None:
    assert torch.equal(split_ids(50, [10, 5], seed=3)[0], split_ids(50, [10, 30], seed=3)[0])
    assert not torch.equal(split_ids(50, [10], seed=3)[0], split_ids(50, [10], seed=4)[0])


@pytest.mark.parametrize("sizes", [[40, 20], [-1, 3]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="at most 50"):
        split_ids(50, sizes, seed=0)


def test_flips_as_many_as_asked_and_never_to_the_same_class() -> None:
    labels = torch.arange(1000) % 10
    noisy = flip_labels(labels, fraction=0.123, classes=10, seed=5)
    assert noisy.flipped.sum() == 123
    assert torch.equal(noisy.labels != labels, noisy.flipped)
    assert torch.equal(noisy.true_labels, labels)
    assert noisy.labels.min() >= 0
    assert noisy.labels.max() < 10
    again = flip_labels(labels, fraction=0.123, classes=10, seed=5)
    assert torch.equal(again.labels, noisy.labels)
    assert not torch.equal(flip_labels(labels, fraction=0.123, classes=10, seed=6).flipped, noisy.flipped)


def test_flips_are_symmetric() -> None:
    labels = torch.zeros(9000, dtype=torch.int64)
    counts = flip_labels(labels, fraction=1.0, classes=10, seed=0).labels.bincount(minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 150  # five standard deviations


@pytest.mark.parametrize(("fraction", "classes"), [(-0.1, 10), (1.1, 10), (0.5, 1)])
def test_impossible_noise_is_refused(fraction: float, classes: int) -> None:
    with pytest.raises(ConfigurationError):
        flip_labels(torch.zeros(5, dtype=torch.int64), fraction=fraction, classes=classes, seed=0)


def test_source_without_a_test_part_is_split_in_three() -> None:
    data = ImageData(Numbered(60), val_size=10, test_size=20, label_noise=0.2)
    parts = [ids_of(data.train_set), ids_of(data.val_set), ids_of(data.test_set)]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(60))
    assert [len(p) for p in parts] == [30, 10, 20]
    assert data.flipped is not None
    assert data.flipped.sum() == 6
    assert torch.equal(data.true_labels, torch.tensor(parts[0]) % 3)
    assert torch.equal(data.train_set.labels != data.true_labels, data.flipped)
    assert torch.equal(data.val_set.labels, torch.tensor(parts[1]) % 3)
    assert data.image_shape == (1, 4, 4)
    assert torch.equal(data.image(4), data.train_set.images[4])


def test_source_with_a_test_part_keeps_it() -> None:
    data = ImageData(Numbered(60, 30), val_size=10, train_size=20)
    assert ids_of(data.test_set) == list(range(1000, 1030))
    assert len(data.train_set) == 20
    assert data.flipped is None
    assert len(ImageData(Numbered(60, 30), val_size=10, test_size=12).test_set) == 12


def test_source_without_a_test_part_needs_a_size() -> None:
    with pytest.raises(ConfigurationError, match="test_size"):
        ImageData(Numbered(60), val_size=10)


def test_order_is_shuffled_and_fixed_by_the_seed() -> None:
    data = ImageData(Numbered(60, 5), val_size=10, batch_size=8, seed=1)
    torch.manual_seed(1)
    loader = data.train_dataloader()
    first, second = epoch(loader), epoch(loader)
    torch.manual_seed(2)
    assert epoch(data.train_dataloader()) == first
    assert first != second
    assert sorted(first) == sorted(second) == ids_of(data.train_set)
    assert epoch(data.val_dataloader()) == ids_of(data.val_set)
    assert epoch(data.test_dataloader()) == ids_of(data.test_set)


def test_crops_are_shifts_drawn_from_torch_alone() -> None:
    image = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    dataset = ImageDataset(image, torch.tensor([2]), crop_padding=1)
    state = random_state.capture()
    torch.manual_seed(7)
    crops = [dataset[0][0] for _ in range(40)]
    after = random_state.capture()
    assert after["numpy"] == state["numpy"]
    assert after["python"] == state["python"]
    torch.manual_seed(7)
    assert torch.equal(dataset[0][0], crops[0])
    shifted = [
        torch.roll(torch.nn.functional.pad(image[0], (2,) * 4), (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)
    ]
    allowed = [padded[:, 2:6, 2:6] for padded in shifted]
    assert all(any(torch.equal(crop, one) for one in allowed) for crop in crops)
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 4


def test_flips_are_drawn_from_torch_alone() -> None:
    image = torch.rand(2, 3, 4)
    dataset = ImageDataset(image[None], torch.tensor([2]), flip=True)
    state = random_state.capture()
    torch.manual_seed(7)
    items = [dataset[0][0] for _ in range(40)]
    after = random_state.capture()
    assert (after["numpy"], after["python"]) == (state["numpy"], state["python"])
    torch.manual_seed(7)
    assert all(torch.equal(dataset[0][0], one) for one in items)
    mirrored = image[..., [3, 2, 1, 0]]
    assert all(torch.equal(one, image) or torch.equal(one, mirrored) for one in items)
    assert 10 < sum(torch.equal(one, mirrored) for one in items) < 30


def test_bytes_are_cropped_flipped_and_then_normalised() -> None:
    images = torch.randint(0, 256, (1, 2, 4, 4), dtype=torch.uint8)
    chosen = {"crop_padding": 1, "flip": True}
    mean, std = [0.2, 0.4], [0.5, 2.0]
    as_bytes = ImageDataset(images, torch.tensor([0]), mean=mean, std=std, **chosen)
    as_floats = ImageDataset(images.float() / 255, torch.tensor([0]), **chosen)
    for seed in range(5):
        torch.manual_seed(seed)
        item = as_bytes[0][0]
        torch.manual_seed(seed)
        plain = as_floats[0][0]
        for channel in (0, 1):
            assert torch.allclose(item[channel], (plain[channel] - mean[channel]) / std[channel])
    assert torch.equal(as_bytes.pixels(0), images[0].float() / 255)
    unaugmented = as_bytes.unaugmented()
    assert torch.allclose(unaugmented[0][0][1], (images[0, 1].float() / 255 - 0.4) / 2)
    assert as_bytes.flip


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mean": [0.5]}, r"mean: expected one number per channel \(2\)"),
        ({"std": [1.0, 0.0]}, "std: expected numbers > 0"),
    ],
)
def test_impossible_normalisations(wrong: dict[str, list[float]], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ImageDataset(torch.zeros(1, 2, 4, 4), torch.tensor([0]), **wrong)  # type: ignore[arg-type]


def test_all_parts_are_normalised_and_only_training_is_augmented() -> None:
    data = ImageData(Numbered(60, 30), val_size=10, crop_padding=1, flip=True, mean=[2.0], std=[4.0], label_noise=0.1)
    for part in (data.val_set, data.test_set):
        assert (part.crop_padding, part.flip) == (0, False)
        assert torch.equal(part[3][0], (part.images[3] - 2) / 4)
    assert (data.train_set.crop_padding, data.train_set.flip) == (1, True)
    assert torch.equal(data.image(4), data.train_set.images[4])


def test_noise_of_ones_own() -> None:
    data = ImageData(Numbered(60), val_size=10, test_size=20, label_noise=AsymmetricNoise(0.5, class_map={"a": "c"}))
    assert data.flipped is not None
    assert set(data.true_labels[data.flipped].tolist()) == {0}
    assert set(data.train_set.labels[data.flipped].tolist()) == {2}
    assert int(data.flipped.sum()) == round(0.5 * int((data.true_labels == 0).sum()))
    assert torch.equal(data.val_set.labels, torch.tensor(ids_of(data.val_set)) % 3)


def test_items_are_pairs() -> None:
    item = ImageDataset(torch.zeros(2, 1, 4, 4), torch.tensor([1, 2]))[1]
    assert isinstance(item, tuple)
    assert int(item[1]) == 2


def test_digits() -> None:
    images, test = Digits().read()
    assert test is None
    assert images.images.shape == (1797, 1, 8, 8)
    assert images.images.min() == 0
    assert images.images.max() == 1
    assert images.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
