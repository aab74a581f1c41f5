from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import Cifar10, Cifar10N, ImageData
from lightning_sgdinf.zoo.cifar10 import CLASSES, read_records
from tests.zoo.files import cifar10_images, human_labels, write_cifar10, write_cifar10n


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("folder", ["cifar10", "cifar-10-batches-bin"])
def test_reads_what_was_written(tmp_path: Path, folder: str, suffix: str) -> None:
    write_cifar10(tmp_path / folder, 12, suffix=suffix)
    for data_dir in (tmp_path, tmp_path / folder):
        train, test = Cifar10(data_dir).read()
        assert test is not None
        assert (train.images.dtype, train.images.shape, len(test)) == (torch.uint8, (60, 3, 32, 32), 12)
        for number in range(5):
            images, labels = cifar10_images(12, number + 1)
            here = slice(12 * number, 12 * number + 12)
            np.testing.assert_array_equal(train.images[here].numpy(), images)
            np.testing.assert_array_equal(train.labels[here].numpy(), labels)
        np.testing.assert_array_equal(test.images.numpy(), cifar10_images(12, 6)[0])


def test_missing_files_are_named_with_layout_and_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as nothing:
        Cifar10(tmp_path).read()
    assert f"there is no data_batch_1.bin in {tmp_path / 'cifar10'}" in str(nothing.value)
    assert "curl -fL https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in str(nothing.value)
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(
        ConfigurationError, match=r"no data_batch_4\.bin in .*cifar-10-batches-bin\. Expected data_batch_1"
    ):
        Cifar10(tmp_path).read()


def test_damaged_files_are_refused_with_the_place(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10")
    file = tmp_path / "cifar10" / "data_batch_3.bin"
    whole = file.read_bytes()
    for damage, says in (
        (whole[:-1], r"data_batch_3\.bin, byte 12,291: expected records of 3073 bytes"),
        (b"", r"data_batch_3\.bin, byte 0: expected records"),
        (whole[: 2 * 3073] + b"\x0a" + whole[2 * 3073 + 1 :], r"byte 6,146: expected a label of 0 to 9, got 10"),
    ):
        file.write_bytes(damage)
        with pytest.raises(ConfigurationError, match=says):
            Cifar10(tmp_path).read()


def noisy(folder: Path, **options: str) -> ImageData:
    noise = Cifar10N(folder, **options)  # type: ignore[arg-type]
    return ImageData(Cifar10(folder), val_size=10, train_size=31, label_noise=noise, seed=4)


def test_human_labels_go_to_the_images_they_belong_to(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10", 12)
    everything = torch.cat([torch.from_numpy(cifar10_images(12, k)[0]) for k in range(1, 6)])
    arrays = human_labels(np.tile(np.arange(12) % 10, 5))
    write_cifar10n(tmp_path / "cifar10n", arrays)
    for which in ("worse", "random1", "random2", "random3"):
        data = noisy(tmp_path, which=which)
        key = which.replace("random", "random_label") if which.startswith("random") else f"{which}_label"
        places = [int((everything == image).flatten(1).all(1).nonzero()) for image in data.train_set.images]
        assert data.train_set.labels.tolist() == arrays[key][places].tolist()
        assert data.true_labels.tolist() == arrays["clean_label"][places].tolist()
        assert data.flipped is not None
        assert data.flipped.tolist() == (arrays[key] != arrays["clean_label"])[places].tolist()
    assert noisy(tmp_path, which="aggre").flipped is None  # in this file the majority is right everywhere
    assert torch.equal(noisy(tmp_path).val_set.labels, noisy(tmp_path, which="aggre").val_set.labels)


def test_human_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10", 12)
    with pytest.raises(ConfigurationError, match=r"(?s)no cifar10n_labels.npz in .*cifar10n.*curl .*CIFAR-10_human.pt"):
        noisy(tmp_path)
    with pytest.raises(
        ConfigurationError, match="which: expected one of aggre, worse, random1, random2, random3, got 'w'"
    ):
        Cifar10N(tmp_path, which="w")  # type: ignore[arg-type]
    labels = np.tile(np.arange(12) % 10, 5)
    for number, (arrays, says) in enumerate(
        [
            (human_labels((labels + 1) % 10), r"differ from those of 31 of 31 training examples .*dataset=cifar10"),
            (human_labels(labels[:30]), r"differ from those of \d+ of 31"),
            ({**human_labels(labels), "worse_label": labels[:7]}, r"worse_label has shape \(7,\)"),
            ({**human_labels(labels), "worse_label": labels + 0.5}, r"worse_label has .* type float64"),
            ({**human_labels(labels), "worse_label": labels + 1}, r"worse_label has 10 at 9"),
            ({"clean_label": labels}, r"expected an array worse_label, got clean_label"),
        ]
    ):
        folder = tmp_path / str(number)
        write_cifar10n(folder / "cifar10n", arrays)
        with pytest.raises(ConfigurationError, match=says):
            ImageData(Cifar10(tmp_path), val_size=10, train_size=31, label_noise=Cifar10N(folder))
    file = tmp_path / "0" / "cifar10n" / "cifar10n_labels.npz"
    for damage in (file.read_bytes()[:200], b"nothing", file.read_bytes().replace(b"PK", b"PX")):
        file.write_bytes(damage)
        with pytest.raises(ConfigurationError, match=r"cifar10n_labels\.npz: it cannot be read"):
            ImageData(Cifar10(tmp_path), val_size=10, label_noise=Cifar10N(tmp_path / "0"))


def test_the_real_files(data_dir: Path) -> None:
    file = data_dir / "cifar10" / "data_batch_1.bin.xz"
    if not file.is_file() or not (data_dir / "cifar10n" / "cifar10n_labels.npz").is_file():
        pytest.skip(f"no CIFAR-10 with human labels in {data_dir}")
    records = read_records(file)  # one of six: unpacking all takes ten seconds
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert records[:, 1:].reshape(-1, 3, 1024).mean((0, 2)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)
    shares = {"aggre": 0.0901, "worse": 0.4021, "random1": 0.1723, "random2": 0.1812, "random3": 0.1764}
    for which, share in shares.items():
        noise = Cifar10N(data_dir, which=which)  # type: ignore[arg-type]
        noisy = noise.apply(labels, ids=torch.arange(10_000), class_names=CLASSES, seed=0)
        assert noisy.flipped.double().mean().item() == pytest.approx(share, abs=0.01)
