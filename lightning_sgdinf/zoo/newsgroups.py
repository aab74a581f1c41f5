"""Two of the 20 newsgroups, as weighted word counts."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.zoo.binary import BinaryExamples

GROUPS = ("comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware")
ARCHIVE = "20news-bydate-ibm-mac.tar.gz"

_REMOVE = ("headers", "footers", "quotes")


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
        """TF-IDF weights of words that are in 0.1 to 20 % of the training posts; training posts first.

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
        """The posts to train on with their groups (places in `GROUPS`), then those to test with.

        Raises:
            ConfigurationError: As `read`.
        """
        for folder in (self.data_dir / "20news", self.data_dir):
            if (folder / ARCHIVE).is_file():
                return _unpacked(folder)
        missing = f"20news: no {ARCHIVE} in {self.data_dir / '20news'}"
        if not self.download:
            raise ConfigurationError(f"{missing}; set data_dir, or allow download")
        datasets = require("sklearn.datasets", extra="cli")
        found = []
        for subset in ("train", "test"):
            try:
                part = datasets.fetch_20newsgroups(
                    data_home=self.data_dir / "sklearn", subset=subset, categories=GROUPS, remove=_REMOVE, n_retries=1
                )
            except (OSError, ValueError) as error:  # no network, or a damaged answer
                raise ConfigurationError(
                    f"{missing}, and fetching the posts failed ({error}); put the archive there or set data_dir"
                ) from error
            found.append((part.data, part.target))
        return found


def _unpacked(folder: Path) -> list[tuple[list[str], np.ndarray]]:
    """Training and test posts with their labels, in the order that the lists beside the archive give."""
    try:
        with tarfile.open(folder / ARCHIVE) as archive:
            texts = {
                member.name.removeprefix("./"): file.read().decode("latin1")
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigurationError(f"{folder / ARCHIVE}: not a whole archive ({error}); download it again") from error
    found = []
    for subset in ("train", "test"):
        order = folder / f"order_{subset}.txt"
        names = order.read_text().split() if order.is_file() else sorted(n for n in texts if f"-{subset}/" in n)
        lost = [name for name in names if name not in texts]
        if lost or not names:
            raise ConfigurationError(
                f"{folder / ARCHIVE}: {len(lost)} posts of {order.name} are not in it, e.g. {lost[:1]}; download both"
            )
        labels = np.array([GROUPS.index(name.split("/")[-2]) for name in names])
        found.append(([_stripped(texts[name]) for name in names], labels))
    return found


def _stripped(post: str) -> str:
    """A post's own words, by scikit-learn's rules."""
    rules = require("sklearn.datasets._twenty_newsgroups", extra="cli")
    return rules.strip_newsgroup_quoting(rules.strip_newsgroup_footer(rules.strip_newsgroup_header(post)))
