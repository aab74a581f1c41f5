"""Posts of newsgroups as weighted word counts, which keep their texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.zoo.newsgroups import GROUPS, NewsHardware, fetch_posts
from lightning_sgdinf.zoo.vectors import LabelledVectors

_Part = tuple[list[str], list[int]]


class Posts:
    """20 Newsgroups, or some of them: posts without headers, footers and quotes; those left empty are not used.

    The two groups on hardware are read from the archive that `NewsHardware` knows, where it is there. Others are
    fetched by scikit-learn once and kept in ``<data_dir>/sklearn``.

    In a configuration::

        source:
          _target_: lightning_sgdinf.zoo.Posts
          data_dir: ${data_dir}

    Args:
        data_dir: Folder of the data sets.
        groups: Names of the newsgroups, at least two; ``None`` for all twenty.
        words: So many of the most frequent words are counted.
        download: Let scikit-learn fetch the posts when there is no archive.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        groups: Sequence[str] | None = GROUPS,
        words: int = 5000,
        download: bool = True,
    ) -> None:
        if groups is not None and len(set(groups)) < 2:
            raise ConfigurationError(f"groups: expected two newsgroups or more, got {list(groups)}")
        if words < 1:
            raise ConfigurationError(f"words: expected at least 1, got {words}")
        self.data_dir = Path(data_dir).expanduser()
        self.groups = None if groups is None else tuple(groups)
        self.words = words
        self.download = download

    def read(self) -> tuple[LabelledVectors, LabelledVectors]:
        """Compute TF-IDF weights of the words of the training posts, a post being of length 1.

        Raises:
            ConfigurationError: The posts are not there and could not be fetched.
        """
        names, parts = self._parts()
        text = require("sklearn.feature_extraction.text", extra="cli")
        weights = text.TfidfVectorizer(stop_words="english", min_df=2, max_df=0.5, max_features=self.words)
        weights.fit(parts[0][0])
        train, test = (
            LabelledVectors(
                inputs=torch.from_numpy(weights.transform(texts).toarray()).float(),
                labels=torch.tensor(labels, dtype=torch.int64),
                class_names=names,
                originals=texts,
            )
            for texts, labels in parts
        )
        return train, test

    def _parts(self) -> tuple[tuple[str, ...], list[_Part]]:
        """Return names of the groups; texts and groups of the training part and of the test part."""
        if self.groups is not None and set(self.groups) == set(GROUPS):
            parts = NewsHardware(self.data_dir, download=self.download).posts()
            return tuple(_short(name) for name in GROUPS), [_written(texts, labels.tolist()) for texts, labels in parts]
        if not self.download:
            raise ConfigurationError(f"posts: only {' and '.join(GROUPS)} are read from an archive; allow download")
        return self._fetched()

    def _fetched(self) -> tuple[tuple[str, ...], list[_Part]]:
        try:
            train, test = fetch_posts(self.data_dir, self.groups)
        except (OSError, ValueError) as error:  # no network, a damaged answer, or an unknown group
            what = "all newsgroups" if self.groups is None else ", ".join(self.groups)
            raise ConfigurationError(
                f"posts: fetching {what} failed ({error}); put scikit-learn's copy into {self.data_dir / 'sklearn'}, "
                f"or choose {' and '.join(GROUPS)} and see NewsHardware"
            ) from error
        return tuple(test.target_names), [_written(part.data, part.target.tolist()) for part in (train, test)]


def _written(texts: Sequence[str], labels: Sequence[int]) -> _Part:
    """Return the posts in which anything is written."""
    kept = [(text.strip("\n"), label) for text, label in zip(texts, labels, strict=True) if text.strip()]
    return [text for text, _ in kept], [label for _, label in kept]


def _short(group: str) -> str:
    """Return ``mac`` of ``comp.sys.mac.hardware``."""
    return group.split(".")[2]
