"""The census income data (Adult), with the categories grouped as in the SGD-influence paper's experiments."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.zoo.binary import BinaryExamples

_PERSON = ("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation")
_HOME = ("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country")
COLUMNS = (*_PERSON, *_HOME, "income")
NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")

_FILES = (("adult-training.csv", "adult.data"), ("adult-test.csv", "adult.test"))
_MISSING = "?"
_UNKNOWN = "0"


def _grouped(**groups: str) -> dict[str, str]:
    """Each member's group, of members named in one string."""
    return {member: group for group, members in groups.items() for member in members.split()}


_GROUPS: Mapping[str, Mapping[str, str]] = {
    "workclass": {_MISSING: _UNKNOWN, "Without-pay": "Never-worked"},
    "education": _grouped(Primary="1st-4th 5th-6th 7th-8th 9th 10th 11th 12th"),
    "marital-status": {"Married-AF-spouse": "Married-civ-spouse"},
    "occupation": {_MISSING: _UNKNOWN, "Armed-Forces": _UNKNOWN},
    "native-country": _grouped(
        first="United-States Cuba ?",
        second="England Germany Canada Italy France Greece Philippines",
        third="Mexico Puerto-Rico Honduras Jamaica Columbia Laos Portugal Haiti Dominican-Republic El-Salvador "
        "Guatemala Peru Trinadad&Tobago Outlying-US(Guam-USVI-etc) Nicaragua Vietnam Holand-Netherlands",
        fourth="India Iran Cambodia Taiwan Japan Yugoslavia China Hong",
        fifth="South Poland Ireland Hungary Scotland Thailand Ecuador",
    ),
}


class Adult:
    """48,842 people: does one earn more than 50,000 dollars a year?

    The files ``adult-training.csv`` and ``adult-test.csv`` (or ``adult.data`` and ``adult.test``; plain or ``.gz``) are
    looked for in ``<data_dir>/adult`` and in ``data_dir`` itself. Without them the data are fetched from OpenML once,
    where the rows are in another order, and kept in ``<data_dir>/openml``.

    In a configuration::

        dataset:
          _target_: lightning_sgdinf.zoo.Adult
          data_dir: ${data_dir}

    Args:
        data_dir: Folder of the data sets.
        download: Ask OpenML when there are no files.
    """

    def __init__(self, data_dir: str | Path, *, download: bool = True) -> None:
        self.data_dir = Path(data_dir).expanduser()
        self.download = download

    def read(self) -> BinaryExamples:
        """All rows, those to train on first: numbers as they are, the logarithm of ``fnlwgt``, a column per category.

        Raises:
            ConfigurationError: The files are not there and could not be fetched, or are damaged.
        """
        rows = self.rows()
        columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
        parts = []
        for name in COLUMNS[:-1]:
            if name in NUMBERS:
                parts.append(self._numbers(name, columns[name])[:, None])
            else:
                groups = _GROUPS.get(name, {})
                values = np.array([groups.get(v, v) for v in columns[name]])
                parts.append((values[:, None] == np.unique(values)).astype(np.float64))
        labels = np.array([v.startswith(">50K") for v in columns["income"]], np.int64)
        return BinaryExamples(inputs=np.concatenate(parts, axis=1), labels=labels, class_names=("<=50K", ">50K"))

    def _numbers(self, name: str, column: list[str]) -> np.ndarray:
        try:
            values = np.array(column, np.float64)
        except ValueError as error:
            raise ConfigurationError(f"adult: column {name!r} is not a number ({error}); download it again") from error
        return np.log1p(values) if name == "fnlwgt" else values

    def rows(self) -> list[list[str]]:
        """All rows as they are in the files, the values of `COLUMNS`; those to train on first.

        Raises:
            ConfigurationError: As `read`.
        """
        for folder in (self.data_dir / "adult", self.data_dir):
            files = [_existing(folder, names) for names in _FILES]
            if all(files):
                return [row for file in files if file is not None for row in _read(file)]
        return self._fetch()

    def _fetch(self) -> list[list[str]]:
        missing = f"adult: no adult-training.csv and adult-test.csv (plain or .gz) in {self.data_dir / 'adult'}"
        if not self.download:
            raise ConfigurationError(f"{missing}; set data_dir, or allow download")
        datasets = require("sklearn.datasets", extra="cli")
        try:
            found = datasets.fetch_openml(
                "adult", version=2, data_home=self.data_dir / "openml", as_frame=True, parser="liac-arff", n_retries=1
            )
        except (OSError, ValueError) as error:  # no network, no answer, or an answer that is no data set
            raise ConfigurationError(
                f"{missing}, and fetching it from OpenML failed ({error}); put the files there or set data_dir"
            ) from error
        frame = found.frame.astype(object).where(found.frame.notna(), _MISSING)
        return [[str(value) for value in row] for row in frame.itertuples(index=False)]


def _existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
    return next((file for file in candidates if file.is_file()), None)


def _read(file: Path) -> list[list[str]]:
    """Rows of a file; lines that are empty or a comment (the test file's first) are left out."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = [line for line in data.decode("ascii").splitlines() if line.strip() and not line.startswith("|")]
    rows = list(csv.reader(lines, skipinitialspace=True))
    for number, row in enumerate(rows):
        if len(row) != len(COLUMNS):
            raise ConfigurationError(
                f"{file}: expected {len(COLUMNS)} columns, row {number} has {len(row)}; download it again"
            )
    return rows
