"""People of the census income data as vectors, which keep their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.adult import COLUMNS, NUMBERS, TRAIN_ROWS, Adult, encoded
from lightning_sgdinf.zoo.vectors import LabelledVectors


class Census:
    """48,842 people: does one earn more than 50,000 dollars a year? 32,561 to train on, the others to test with.

    Numbers are standardised by the mean and deviation of the training people, categories have a column each, as
    `Adult.read` makes them. A person is shown as the row of the file, without the weight of the survey.

    In a configuration::

        source:
          _target_: lightning_sgdinf.zoo.Census
          data_dir: ${data_dir}

    Args:
        data_dir: Folder of the data sets.
        download: Ask OpenML when there are no files.
        train_rows: How many people there are to train on: the rows of the training file, which is refused if it has
            another number of them.
    """

    def __init__(self, data_dir: str | Path, *, download: bool = True, train_rows: int = TRAIN_ROWS) -> None:
        self.adult = Adult(data_dir, download=download)
        self.train_rows = train_rows

    def read(self) -> tuple[LabelledVectors, LabelledVectors]:
        """Read the people of the training file, and those of the test file.

        Raises:
            ConfigurationError: The files are not there and could not be fetched, or are damaged, or there are not
                ``train_rows`` to train on.
        """
        train, test = self.adult.parts()
        if len(train) != self.train_rows:
            raise ConfigurationError(
                f"adult: expected {self.train_rows:,} people to train on (train_rows), got {len(train):,} from "
                f"{self.adult.data_dir}; if those are all there should be, set train_rows={len(train)}, else download "
                "the training file again"
            )
        rows = [*train, *test]
        examples = encoded(rows)
        inputs = torch.from_numpy(examples.inputs)
        mean, deviation = inputs[: self.train_rows].mean(0), inputs[: self.train_rows].std(0, correction=0)
        everyone = LabelledVectors(
            inputs=((inputs - mean) / torch.where(deviation > 0, deviation, 1)).float(),
            labels=torch.from_numpy(examples.labels),
            class_names=examples.class_names,
            originals=_Rows(rows),
        )
        ids = torch.arange(len(everyone))
        return everyone.subset(ids[: self.train_rows]), everyone.subset(ids[self.train_rows :])


class _Rows(Sequence[Mapping[str, "str | float"]]):
    """Rows of the files as names and values, made when they are looked at."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        values: Any = self._rows[index]
        row = dict(zip(COLUMNS, values, strict=True))
        return {
            name: int(value) if name in NUMBERS else value
            for name, value in row.items()
            if name not in ("fnlwgt", "income")
        }
