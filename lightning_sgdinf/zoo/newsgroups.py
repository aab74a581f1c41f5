"""Two of the 20 newsgroups, as weighted word counts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.zoo.binary import BinaryExamples
from lightning_sgdinf.zoo.compressed import read_whole
from lightning_sgdinf.zoo.fetching import fetch

GROUPS = ("comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware")
ARCHIVE = "20news-bydate-ibm-mac.tar.gz"


class NewsHardware:
    """1,945 posts, ``comp.sys.ibm.pc.hardware`` (0) or ``comp.sys.mac.hardware`` (1), without headers, footers, quotes.

    An archive ``20news-bydate-ibm-mac.tar.gz`` of the posts, with ``order_train.txt`` and ``order_test.txt`` that name
    them in scikit-learn's order, is looked for in ``<data_dir>/20news`` and in ``data_dir`` itself. Without it
    scikit-learn fetches all newsgroups once and keeps them in ``<data_dir>/sklearn``.

    In a configuration::

        dataset:
          _target_: lightning_sgdinf.zoo.NewsHardware
          data_dir: ${data_dir}

    Args:
        data_dir: Folder of the data sets.
        download: Let scikit-learn fetch the posts when there is no archive.
    """

    def __init__(self, data_dir: str | Path, *, download: bool = True) -> None:
        self.data_dir = Path(data_dir).expanduser()
        self.download = download

    def read(self) -> BinaryExamples:
        """Compute TF-IDF weights of words that are in 0.1 to 20 % of the training posts; training posts first.

        Raises:
            ConfigurationError: The posts are not there and could not be fetched, or the archive is damaged.
        """
        (train, train_labels), (test, test_labels) = self.posts()
        text = require("sklearn.feature_extraction.text", extra="cli")
        words = text.TfidfVectorizer(stop_words="english", min_df=0.001, max_df=0.20)
        counts = [words.fit_transform(train), words.transform(test)]
        return BinaryExamples(
            inputs=np.concatenate([c.toarray() for c in counts]),
            labels=np.concatenate([train_labels, test_labels]).astype(np.int64),
            class_names=("ibm", "mac"),
        )

    def posts(self) -> list[tuple[list[str], np.ndarray]]:
        """Read the posts to train on with their groups (places in `GROUPS`), then those to test with.

        Raises:
            ConfigurationError: As `read`.
        """
        for folder in (self.data_dir / "20news", self.data_dir):
            if (folder / ARCHIVE).is_file():
                return _unpacked(folder)
        missing = f"20news: no {ARCHIVE} in {self.data_dir / '20news'}"
        if not self.download:
            raise ConfigurationError(f"{missing}; set data_dir, or allow download")
        try:
            return [(part.data, part.target) for part in fetch_posts(self.data_dir, GROUPS)]
        except (OSError, ValueError) as error:  # no network, or a damaged answer
            raise ConfigurationError(
                f"{missing}, and fetching the posts failed ({error}); put the archive there or set data_dir"
            ) from error


def fetch_posts(data_dir: Path, groups: Sequence[str] | None) -> list[Any]:
    """Fetch posts by scikit-learn, which keeps them: the training part and the test part; see `fetch` for errors.

    Args:
        data_dir: Folder of the data sets.
        groups: Names of the newsgroups; ``None`` for all twenty.
    """
    options = {"data_home": data_dir / "sklearn", "categories": groups, "remove": ("headers", "footers", "quotes")}
    return [fetch("fetch_20newsgroups", subset=subset, **options) for subset in ("train", "test")]


def _unpacked(folder: Path) -> list[tuple[list[str], np.ndarray]]:
    """Read training and test posts with their labels, in the order that the lists beside the archive give."""
    texts = _texts(folder / ARCHIVE)
    parts = []
    for subset in ("train", "test"):
        names = _order(folder, subset, texts)
        labels = np.array([GROUPS.index(name.split("/")[-2]) for name in names])
        parts.append(([_stripped(texts[name]) for name in names], labels))
    return parts


def _texts(file: Path) -> dict[str, str]:
    """Read the posts of an archive by their names.

    All of it is unpacked first, to some tens of megabytes: tarfile stops reading before gzip's checksum, which is what
    most of the damage shows by.
    """
    data = read_whole(file)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            return {
                member.name.removeprefix("./"): content.read().decode("latin1")
                for member in archive
                if (content := archive.extractfile(member)) is not None
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigurationError(f"{file}: not a whole archive ({error}); download it again") from error


def _order(folder: Path, subset: str, texts: Mapping[str, str]) -> list[str]:
    """Read the names of a part's posts as the list beside the archive has them; sorted, if there is no list."""
    order = folder / f"order_{subset}.txt"
    present = sorted(name for name in texts if f"-{subset}/" in name)
    names = order.read_text(encoding="latin1").split() if order.is_file() else present
    lost = [name for name in names if name not in texts]
    if lost or not names:
        raise ConfigurationError(
            f"{folder / ARCHIVE}: {len(lost)} posts of {order.name} are not in it, e.g. {lost[:1]}; download both"
        )
    if sorted(names) != present:  # a list that was cut at the end of a line, for one
        raise ConfigurationError(
            f"{order}: expected each of the {len(present):,} posts of {ARCHIVE} to {subset} with once, got "
            f"{len(names):,} names; download both"
        )
    return names


def _stripped(post: str) -> str:
    """Return a post's own words, by scikit-learn's rules."""
    rules = require("sklearn.datasets._twenty_newsgroups", extra="cli")
    return rules.strip_newsgroup_quoting(rules.strip_newsgroup_footer(rules.strip_newsgroup_header(post)))
