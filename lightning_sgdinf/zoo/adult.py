"""The census income data (Adult), with the categories grouped as in the SGD-influence paper's experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.binary import BinaryExamples
from lightning_sgdinf.zoo.compressed import damaged, existing, read_whole
from lightning_sgdinf.zoo.fetching import fetch

_PERSON = ("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation")
_HOME = ("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country")
COLUMNS = (*_PERSON, *_HOME, "income")
NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
TRAIN_ROWS = 32_561
TEST_ROWS = 16_281

_FILES = (("adult-training.csv", "adult.data"), ("adult-test.csv", "adult.test"))
_LABELS = ("<=50K", ">50K")  # followed by a full stop in the test file
_MISSING = "?"
_UNKNOWN = "0"


def _grouped(**groups: str) -> dict[str, str]:
    """Return the group of each member, of members named in one string."""
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

# The published files, known by their first row: text that was cut at the end of a line shows it by nothing else than
# the number of rows, and tables of other people may have any number.
_PUBLISHED: Mapping[str, int] = {
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, "
    "United-States, <=50K": TRAIN_ROWS,
    "25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, Male, 0, 0, 40, "
    "United-States, <=50K.": TEST_ROWS,
}


class Adult:
    """48,842 people: does one earn more than 50,000 dollars a year?

    The files ``adult-training.csv`` and ``adult-test.csv`` (or ``adult.data`` and ``adult.test``; plain, ``.gz`` or
    ``.xz``) are looked for in ``<data_dir>/adult`` and in ``data_dir`` itself. Without them the data are fetched from
    OpenML once, where the rows are in another order, and kept in ``<data_dir>/openml``. Other people's rows in files of
    these names may be of any number; a file that begins as the published one must have all of its rows.

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
        """Read all rows, those to train on first: numbers as they are, the logarithm of ``fnlwgt``, a column per
        category.

        Raises:
            ConfigurationError: The files are not there and could not be fetched, or are damaged.
        """
        return encoded(self.rows())

    def rows(self) -> list[list[str]]:
        """Read all rows as they are in the files, the values of `COLUMNS`; those to train on first.

        Raises:
            ConfigurationError: As `read`.
        """
        train, test = self.parts()
        return [*train, *test]

    def parts(self) -> tuple[list[list[str]], list[list[str]]]:
        """Read the rows to train on and those to test with, the values of `COLUMNS`.

        Raises:
            ConfigurationError: As `read`.
        """
        for folder in (self.data_dir / "adult", self.data_dir):
            train, test = (_existing(folder, names) for names in _FILES)
            if train is not None and test is not None:
                return _read(train), _read(test)
        rows = self._fetch()
        return rows[:TRAIN_ROWS], rows[TRAIN_ROWS:]

    def _fetch(self) -> list[list[str]]:
        missing = f"adult: no adult-training.csv and adult-test.csv (plain, .gz or .xz) in {self.data_dir / 'adult'}"
        if not self.download:
            raise ConfigurationError(f"{missing}; set data_dir, or allow download")
        try:
            bunch = fetch(
                "fetch_openml",
                "adult",
                version=2,
                data_home=self.data_dir / "openml",
                as_frame=True,
                parser="liac-arff",
            )
        except (OSError, ValueError) as error:  # no network, no answer, or an answer that is no data set
            raise ConfigurationError(
                f"{missing}, and fetching it from OpenML failed ({error}); put the files there or set data_dir"
            ) from error
        frame = bunch.frame.astype(object).where(bunch.frame.notna(), _MISSING)
        return [[str(value) for value in row] for row in frame.itertuples(index=False)]


def encoded(rows: Sequence[Sequence[str]]) -> BinaryExamples:
    """Encode people as vectors: numbers as they are, the logarithm of ``fnlwgt``, a column per category.

    Args:
        rows: Values of `COLUMNS`.

    Raises:
        ConfigurationError: A number is none.
    """
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    parts = []
    for name in COLUMNS[:-1]:
        if name in NUMBERS:
            parts.append(_numbers(name, columns[name])[:, None])
        else:
            groups = _GROUPS.get(name, {})
            values = np.array([groups.get(v, v) for v in columns[name]])
            parts.append((values[:, None] == np.unique(values)).astype(np.float64))
    labels = np.array([v.startswith(">50K") for v in columns["income"]], np.int64)
    return BinaryExamples(inputs=np.concatenate(parts, axis=1), labels=labels, class_names=("<=50K", ">50K"))


def _numbers(name: str, column: list[str]) -> np.ndarray:
    try:
        values = np.array(column, np.float64)
    except ValueError as error:
        raise ConfigurationError(f"adult: column {name!r} is not a number ({error}); download it again") from error
    return np.log1p(values) if name == "fnlwgt" else values


def _existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((file for name in names if (file := existing(folder / name)) is not None), None)


def _read(file: Path) -> list[list[str]]:
    """Read the rows of a file without lines that are empty or a comment (the test file's first)."""
    data = read_whole(file)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise damaged(file, error.start, f"expected ASCII text, got the byte {data[error.start]:02x}") from error
    rows: list[list[str]] = []
    start = 0
    for line in text.split("\n"):
        if line.strip() and not line.startswith("|"):
            rows.append(_row(line, file, start=start, number=len(rows)))
        start += len(line) + 1
    if not rows:
        raise damaged(file, len(data), f"expected rows of {len(COLUMNS)} columns, got none")
    expected = _PUBLISHED.get(", ".join(rows[0]))
    if expected not in (None, len(rows)):
        raise damaged(
            file,
            len(data),
            f"expected the {expected:,} rows of the published file, which begins as this one does, got {len(rows):,} "
            "(to train on fewer people, leave the file whole and choose a smaller part)",
        )
    return rows


def _row(line: str, file: Path, *, start: int, number: int) -> list[str]:
    """Return the values of a line that starts at that byte."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(COLUMNS):
        raise damaged(file, start, f"expected {len(COLUMNS)} columns, row {number} has {len(values)}")
    if values[-1].removesuffix(".") not in _LABELS:
        raise damaged(
            file, start, f"expected {' or '.join(_LABELS)} at the end of the line, row {number} has {values[-1]!r}"
        )
    return values
