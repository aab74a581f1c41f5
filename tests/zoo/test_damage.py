"""Files that were cut off or changed on their way are refused by name, or what they hold came through unchanged."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import Adult, Census, Cifar10N, Mnist, NewsHardware, Posts
from lightning_sgdinf.zoo.adult import TEST_ROWS, TRAIN_ROWS
from lightning_sgdinf.zoo.newsgroups import ARCHIVE
from tests.zoo.documents import write_census, write_posts
from tests.zoo.files import human_labels, write_cifar10n

FIRST = {
    "adult-training.csv": "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, "
    "Male, 2174, 0, 40, United-States, <=50K",
    "adult-test.csv": "25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, "
    "Male, 0, 0, 40, United-States, <=50K.",
}


def cuts_and_flips(whole: bytes) -> Iterator[bytes]:
    """Every beginning of a file, and the file with one bit of every byte the other way round, and with all of them."""
    for i, byte in enumerate(whole):
        yield whole[:i]
        for changed in (byte ^ (1 << i % 8), byte ^ 0xFF):
            yield whole[:i] + bytes([changed]) + whole[i + 1 :]


def check_damage(file: Path, read: Callable[[], Any], damages: Callable[[bytes], Iterator[bytes]]) -> None:
    """Each damaged copy is refused by an error that names the file, or reads as the whole one does."""
    whole = file.read_bytes()
    expected, refused = read(), 0
    for damage in damages(whole):
        file.write_bytes(damage)
        try:
            examples = read()
        except ConfigurationError as error:
            assert str(file) in str(error)  # noqa: PT017 - most copies are refused, but not all
            refused += 1
        else:
            assert examples == expected
    assert refused > len(whole), "the test is degenerate: most of the damage went unnoticed"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_tables(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    write_census(tmp_path / "adult", train=30, test=3)
    plain = tmp_path / "adult" / "adult-training.csv"
    file = plain.with_name(plain.name + suffix)
    before = Adult(tmp_path, download=False).rows()
    file.write_bytes(pack(plain.read_bytes()))
    plain.unlink()
    assert Adult(tmp_path, download=False).rows() == before
    check_damage(file, Adult(tmp_path, download=False).rows, cuts_and_flips)


def test_archive_of_posts(tmp_path: Path) -> None:
    write_posts(tmp_path / "20news", train=6, test=2)

    def read() -> Any:
        return [(texts, labels.tolist()) for texts, labels in NewsHardware(tmp_path, download=False).posts()]

    check_damage(tmp_path / "20news" / ARCHIVE, read, cuts_and_flips)


def test_an_archive_that_is_none_once_unpacked(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(ConfigurationError, match=rf"{ARCHIVE}: not a whole archive"):
        NewsHardware(tmp_path, download=False).posts()


def test_archive_of_labels(tmp_path: Path) -> None:
    write_cifar10n(tmp_path / "cifar10n", human_labels(np.arange(12) % 10))
    file = tmp_path / "cifar10n" / "cifar10n_labels.npz"

    def read() -> list[int]:
        noise = Cifar10N(tmp_path)
        return noise.apply(
            torch.arange(12) % 10, ids=torch.arange(12), class_names=list("0123456789"), seed=0
        ).labels.tolist()

    def damages(whole: bytes) -> Iterator[bytes]:
        yield from (whole[:i] for i in range(len(whole)))
        # All of the two arrays that are read, and of the directory; of the first one's entry every method of
        # compression and every flag.
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            directory = archive.start_dir
        for name in ("clean_label.npy", "worse_label.npy"):
            start = members[name].header_offset
            for i in range(start, start + 30 + len(name) + members[name].compress_size):
                yield whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :]
        for i in range(directory, len(whole)):
            yield whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :]
        for place in (8, 10):
            for value in range(256):
                yield whole[: directory + place] + bytes([value]) + whole[directory + place + 1 :]

    check_damage(file, read, damages)


@pytest.mark.parametrize("method", [1, 99])
def test_a_method_of_compression_that_there_is_not(tmp_path: Path, method: int) -> None:
    write_cifar10n(tmp_path / "cifar10n", human_labels(np.arange(12) % 10))
    file = tmp_path / "cifar10n" / "cifar10n_labels.npz"
    with zipfile.ZipFile(file) as archive:
        places = [info.header_offset + 8 for info in archive.infolist()]
        directory = archive.start_dir
    content = bytearray(file.read_bytes())
    while content[directory : directory + 4] == b"PK\x01\x02":
        places.append(directory + 10)
        directory += 46 + sum(struct.unpack_from("<3H", content, directory + 28))
    for place in places:
        struct.pack_into("<H", content, place, method)
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"cifar10n_labels\.npz: it cannot be read .*expected an archive"):
        Cifar10N(tmp_path).apply(torch.arange(3), ids=torch.arange(3), class_names=["a"], seed=0)


def test_one_array_or_none_under_the_name_of_an_archive(tmp_path: Path) -> None:
    file = tmp_path / "cifar10n" / "cifar10n_labels.npz"
    file.parent.mkdir()
    with file.open("wb") as stream:
        np.save(stream, np.arange(12))
    says = r"cifar10n_labels\.npz: it cannot be read .*expected an archive of arrays"
    with pytest.raises(ConfigurationError, match=says):
        Cifar10N(tmp_path).apply(torch.arange(3), ids=torch.arange(3), class_names=["a"], seed=0)
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("clean_label.npy", "worse_label.npy"):
            archive.writestr(name, b"no array")
    with pytest.raises(ConfigurationError, match=says):
        Cifar10N(tmp_path).apply(torch.arange(3), ids=torch.arange(3), class_names=["a"], seed=0)


def test_tables_that_end_early(tmp_path: Path) -> None:
    """Plain text has no checksum: what is cut shows by the number of rows and the end of the last."""
    write_census(tmp_path / "adult", train=8, test=3)
    file = tmp_path / "adult" / "adult-training.csv"
    census = Census(tmp_path, download=False, train_rows=8)

    def read() -> list[list[Any]]:
        return [[part.inputs.tolist(), part.labels.tolist(), list(part.originals)] for part in census.read()]

    whole, expected = file.read_bytes(), read()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        if end == len(whole) - 1:  # only the last line feed is lost
            assert read() == expected
        else:
            with pytest.raises(ConfigurationError, match=r"adult-training\.csv, byte |expected 8 people to train on"):
                read()
    file.write_bytes(whole)
    with pytest.raises(ConfigurationError, match=r"expected 9 people to train on .*got 8 from .*train_rows=8"):
        Census(tmp_path, download=False, train_rows=9).read()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: text.rindex(">50K") + 2], r"byte 731: expected <=50K or >50K .*row 7 has '>5'"),
        (lambda text: text.replace("<=50K", "<=50J", 1), r"byte 0: expected <=50K or >50K .*row 0 has '<=50J'"),
        (lambda text: text.replace("Cuba", "Cub\xe1", 1), r"byte 96: expected ASCII text, got the byte e1"),
        (lambda text: text[:10], "byte 0: expected 15 columns, row 0 has 2"),
        (lambda text: "", "byte 0: expected rows of 15 columns, got none"),
    ],
)
def test_broken_text_is_refused_with_the_place(tmp_path: Path, damage: Callable[[str], str], says: str) -> None:
    write_census(tmp_path / "adult", train=8, test=3)
    file = tmp_path / "adult" / "adult-training.csv"
    file.write_bytes(damage(file.read_text()).encode("latin1"))
    with pytest.raises(ConfigurationError, match=rf"adult-training\.csv, {says}"):
        Adult(tmp_path, download=False).rows()


@pytest.mark.parametrize(("name", "rows"), [("adult-training.csv", TRAIN_ROWS), ("adult-test.csv", TEST_ROWS)])
def test_the_published_tables_have_all_of_their_rows(tmp_path: Path, name: str, rows: int) -> None:
    write_census(tmp_path / "adult", train=5, test=3)
    file = tmp_path / "adult" / name
    adult = Adult(tmp_path, download=False)
    for count in (1, rows - 1, rows + 1):
        file.write_text(f"{FIRST[name]}\n" * count)
        says = rf"{re.escape(str(file))}, byte [\d,]+: expected the {rows:,} rows of the published .*got {count:,} "
        with pytest.raises(ConfigurationError, match=says):
            adult.read()
    file.write_text(f"{FIRST[name]}\n" * rows)
    assert sorted(len(part) for part in adult.parts()) == sorted((rows, 3 if "training" in name else 5))


def test_the_real_tables_cut_at_the_end_of_a_line(data_dir: Path, tmp_path: Path) -> None:
    real = [data_dir / "adult" / f"{name}.gz" for name in FIRST]
    if not all(file.is_file() for file in real):
        pytest.skip(f"no adult-training.csv.gz and adult-test.csv.gz in {data_dir / 'adult'}")
    texts = [gzip.decompress(file.read_bytes()).splitlines(keepends=True) for file in real]
    for part, (name, rows) in enumerate(zip(FIRST, ("32,561", "16,281"), strict=True)):
        for other, lines in zip(FIRST, texts, strict=True):
            (tmp_path / other).write_bytes(b"".join(lines))
        (tmp_path / name).write_bytes(b"".join(texts[part][:10_001]))
        says = rf"{name}, byte [\d,]+: expected the {rows} rows of the published file.*got 10,00[01] "
        for source in (Adult(tmp_path, download=False), Census(tmp_path, download=False)):
            with pytest.raises(ConfigurationError, match=says):
                source.read()


def test_a_list_of_posts_that_ends_early(tmp_path: Path) -> None:
    write_posts(tmp_path / "20news", train=6, test=2)
    with tarfile.open(tmp_path / "20news" / ARCHIVE) as archive:
        names = [name for name in archive.getnames() if "-train/" in name]
    order = tmp_path / "20news" / "order_train.txt"
    news = NewsHardware(tmp_path, download=False)
    order.write_text("\n".join(names[::-1]))
    assert news.posts()[0][1].tolist() == [1, 0, 1, 0, 1, 0]
    for wrong in (names[:4], [*names, names[0]]):
        order.write_text("\n".join(wrong))
        with pytest.raises(
            ConfigurationError, match=rf"order_train\.txt: expected each of the 6 posts .*got {len(wrong)} names"
        ):
            news.posts()


SOURCES: list[Callable[[Path], Any]] = [
    Mnist,
    Adult,
    Census,
    NewsHardware,
    Posts,
    lambda folder: Posts(folder, groups=None),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.filterwarnings("ignore")  # of scikit-learn, that it tries again
def test_a_download_that_fails_leaves_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[[Path], Any]
) -> None:
    """With scikit-learn's own code, which makes a dozen folders before it looks for a network."""
    asked: list[Path] = []

    def no_network(*_: object, **__: object) -> None:
        asked.extend(folder for folder in tmp_path.rglob("*") if folder.is_dir())
        raise urllib.error.URLError("unreachable")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # before it tries again
    with pytest.raises(ConfigurationError, match="unreachable"):
        source(tmp_path / "typo" / "deep").read()
    assert len(asked) > 3, "the test is degenerate: no folders were made"
    assert list(tmp_path.iterdir()) == []

    kept = [tmp_path / "data" / name / "empty" for name in ("openml", "sklearn", "mine")]
    for folder in kept:
        folder.mkdir(parents=True)
        folder.with_name("file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match="unreachable"):
        source(tmp_path / "data").read()
    assert sorted(tmp_path.rglob("*")) == before, "what was there before stays"


def test_what_was_fetched_before_a_failure_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("sklearn.datasets")

    def half(_: str, *, data_home: Path, **__: object) -> None:
        (data_home / "openml" / "empty").mkdir(parents=True)
        (data_home / "openml" / "part").touch()
        raise OSError("unreachable")

    monkeypatch.setattr(datasets, "fetch_openml", half)
    with pytest.raises(ConfigurationError, match="unreachable"):
        Mnist(tmp_path / "new").read()
    assert [file.name for file in (tmp_path / "new" / "openml" / "openml").iterdir()] == ["part"]
