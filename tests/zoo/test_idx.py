from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import Mnist, read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 28, 28)).astype(np.uint8)


@pytest.mark.parametrize("compress", [False, True])
def test_reads_what_was_written(tmp_path: Path, array: np.ndarray, compress: bool) -> None:
    data = idx_bytes(array)
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(data) if compress else data)
    read = read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)
    read[0] = 0  # the caller's own memory


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], r"images, byte 3,935: expected 3,920 elements for shape \(5, 28, 28\), got 3,919"),
        (lambda data: data + b"\0", "images, byte 3,936: expected 3,920 elements"),
        (lambda data: data[:9], "images, byte 9: the file ends within its 16-byte head"),
        (lambda data: b"\0\0\x0d" + data[3:], "unsigned bytes"),
        (lambda data: b"", "unsigned bytes"),
        (lambda data: b"<html>", "byte 0: .*got 3c 68 74 6d"),
        (lambda data: gzip.compress(data)[:-20], r"images, byte [\d,]+: the file ends within its gzip data"),
        (lambda data: lzma.compress(data)[:-20], r"images, byte [\d,]+: the file ends within its xz data"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, array: np.ndarray, damage, says: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(damage(idx_bytes(array)))
    with pytest.raises(ConfigurationError, match=says):
        read_idx(path)


def write_tiny(folder: Path, array: np.ndarray, suffix: str = "") -> np.ndarray:
    folder.mkdir(parents=True)
    labels = np.arange(len(array), dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3-ubyte", array), ("labels-idx1-ubyte", labels)):
            data = idx_bytes(values)
            (folder / f"{part}-{kind}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return labels


@pytest.mark.parametrize(("folder", "suffix"), [("mnist", ".gz"), ("mnist", ""), ("MNIST/raw", "")])
def test_mnist_is_found_in_the_usual_folders(tmp_path: Path, array: np.ndarray, folder: str, suffix: str) -> None:
    labels = write_tiny(tmp_path / folder, array, suffix)
    train, test = Mnist(tmp_path, download=False).read()
    assert test is not None
    np.testing.assert_array_equal((train.images * 255).round().numpy()[:, 0], array)
    np.testing.assert_array_equal(test.labels.numpy(), labels)
    assert len(train) == 5


def test_the_folder_itself_may_be_named(tmp_path: Path, array: np.ndarray) -> None:
    write_tiny(tmp_path / "mnist", array)
    assert len(Mnist(tmp_path / "mnist", download=False).read()[0]) == 5


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"train-images-idx3-ubyte.*fashion-mnist.*FashionMNIST") as caught:
        Mnist(tmp_path, variant="fashion-mnist", download=False).read()
    assert f"--output-dir {tmp_path / 'fashion-mnist'}" in str(caught.value)
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(ConfigurationError, match="there is no train-labels-idx1-ubyte in"):
        Mnist(tmp_path, variant="fashion-mnist", download=False).read()


def test_a_failed_download_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("sklearn.datasets")

    def no_network(*_args, **_options):
        raise OSError("unreachable")

    monkeypatch.setattr(datasets, "fetch_openml", no_network)
    with pytest.raises(ConfigurationError, match=r"(?s)train-images.*OpenML failed, too \(unreachable\)"):
        Mnist(tmp_path).read()


def test_a_download_has_the_same_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = np.zeros((60_002, 784))
    pixels[60_001, 28] = 255
    asked: dict[str, object] = {}

    def fetched(name, **options):
        asked.update(options, name=name)
        return pixels, np.array(["7"] * 60_002)

    monkeypatch.setattr(datasets, "fetch_openml", fetched)
    train, test = Mnist(tmp_path, variant="fashion-mnist").read()
    assert test is not None
    assert (len(train), len(test)) == (60_000, 2)
    assert test.images[1, 0, 1, 0] == 1
    assert test.labels.tolist() == [7, 7]
    assert asked["name"] == "Fashion-MNIST"


def test_mismatched_files_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    write_tiny(tmp_path / "mnist", array)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(ConfigurationError, match=r"images \[N, 28, 28\] and labels \[N\]"):
        Mnist(tmp_path, download=False).read()


def test_a_label_that_is_no_digit_is_refused_with_the_place(tmp_path: Path, array: np.ndarray) -> None:
    write_tiny(tmp_path / "mnist", array)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([1, 2, 10, 3, 4], np.uint8)))
    with pytest.raises(
        ConfigurationError, match=r"t10k-labels-idx1-ubyte, byte 10: expected a label of 0 to 9, got 10"
    ):
        Mnist(tmp_path, download=False).read()


def test_unknown_variant_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="one of mnist, fashion-mnist, got 'kmnist'"):
        Mnist("data", variant="kmnist")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "mean"), [("mnist", 0.1307), ("fashion-mnist", 0.2860)])
def test_the_real_files(data_dir: Path, variant: str, mean: float) -> None:
    train, test = Mnist(data_dir, variant=variant, download=False).read()  # type: ignore[arg-type]
    assert test is not None
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.images.mean().item() == pytest.approx(mean, abs=1e-4)
    assert train.labels.bincount().min() > 5000
    assert len(train.class_names) == 10
