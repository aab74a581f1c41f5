"""The job: all repeats of one cell, then the table over all cells there are."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm.auto import tqdm

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report import save_scatter
from lightning_sgdinf.studies.agreement import results
from lightning_sgdinf.studies.agreement.cell import Cell, Protocol, run_repeat
from lightning_sgdinf.studies.agreement.published import PUBLISHED
from lightning_sgdinf.studies.cache import load_or_compute, pin_settings
from lightning_sgdinf.studies.console import Console, Table, plain
from lightning_sgdinf.studies.job import PIPELINE_GROUPS, Parts, cell_of
from lightning_sgdinf.zoo import BinaryExamples

SHOWN = ("sgd_influence", "accumulated_evaluated", "koh_liang_paper")
"""The methods in the figure of a cell."""


@dataclass(frozen=True, kw_only=True)
class AgreementJob:
    """The agreement of influence estimates with the truth, as in section 7.1 of the SGD-influence paper.

    Results go to ``output_dir``, one file per repeat; an existing one is not computed again, so a job that was
    interrupted goes on, and one with more repeats adds to those that are there. The tables (``table.md``,
    ``table.csv``) are those of all cells in the folder.

    In a configuration::

        job:
          _target_: lightning_sgdinf.studies.AgreementJob
          seeds: 100
          protocols: {adult_lie: {logreg: {lr: 0.1, decay: true, epochs: 20, batch_size: 5}}}

    Args:
        seeds: Repeats, at least 1: seeds 0, 1, 2, ...
        protocols: By data set and by model, the arguments of `Protocol`.
        size: Training, validation and test examples each.
        workers: Processes that share the repeats out, at least 1, one thread each.

    Raises:
        ConfigurationError: A number out of range.
    """

    ignored_groups: ClassVar[Mapping[str, str]] = {
        **PIPELINE_GROUPS,
        "seed": "it has seeds",
        "optimizer": "job.protocols has its learning rates",
        "query": "its query is the mean validation loss",
    }

    seeds: int
    protocols: Mapping[str, Mapping[str, Mapping[str, Any]]]
    size: int = 200
    workers: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.workers < 1 or self.size < 2:
            raise ConfigurationError(
                f"expected seeds >= 1, workers >= 1 and size >= 2, got {self.seeds}, {self.workers} and {self.size}"
            )

    def run(self, parts: Parts) -> float:
        """Compute the repeats that are not there yet, and write the tables.

        Returns:
            The mean tau of the exact derivative.

        Raises:
            ConfigurationError: No protocol for the data set and the model, or a folder with results of other settings.
        """
        cell = self.cell(parts)
        folder = parts.folder / cell_of(parts.choices)
        pin_settings(folder / results.SETTINGS, self._settings(cell))
        missing = [seed for seed in range(self.seeds) if not results.file_of(folder, seed).is_file()]
        with tqdm(total=self.seeds, initial=self.seeds - len(missing), desc=folder.name, unit=" repeats") as bar:
            for _ in _compute(cell, folder, missing, self.workers):
                bar.update()
        lines = [
            line for line in results.assemble(parts.folder) if (line.dataset, line.model) == (cell.dataset, cell.model)
        ]
        first = results.repeats(folder)[0]
        figure = parts.folder / f"{folder.name}.png"
        save_scatter(
            first.true,
            {results.name_of(name): first.estimates[name] for name in SHOWN if name in first.estimates},
            figure,
        )
        _print(lines, first.notes, [parts.folder / results.PAGE, figure])
        return next(line.tau.mean for line in lines if line.method == "sgd_influence")

    def cell(self, parts: Parts) -> Cell:
        """Return the cell that the configuration's groups name."""
        dataset, model = parts.choices.get("dataset", ""), parts.choices.get("model", "")
        protocol = self.protocols.get(dataset, {}).get(model)
        if protocol is None:
            known = [f"dataset={d} model={m}" for d, models in self.protocols.items() for m in models]
            raise ConfigurationError(
                f"dataset={dataset} model={model}: no protocol for these; there is one for {', '.join(known)}"
            )
        return Cell(
            dataset=dataset,
            model=model,
            source=parts.dataset,
            network=parts.network,
            protocol=Protocol(**protocol),
            size=self.size,
            trainer=parts.trainer,
            runner=parts.runner,
        )

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """Return the settings that results of one folder share."""
        return {
            "dataset": cell.dataset,
            "model": cell.model,
            "size": cell.size,
            "protocol": asdict(cell.protocol),
        }


_worker: dict[str, Any] = {}
"""The arguments of `_store` that a worker process keeps between repeats."""


def _compute(cell: Cell, folder: Path, seeds: Sequence[int], workers: int) -> Iterator[int]:
    """Yield seeds as their repeats are computed and stored."""
    if not seeds:
        return
    if workers == 1:
        examples = cell.source.read()
        yield from (_store(cell, examples, folder, seed) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(cell, folder)) as pool:
        for future in as_completed([pool.submit(_store_in_worker, seed) for seed in seeds]):
            yield future.result()


def _begin(cell: Cell, folder: Path) -> None:
    torch.set_num_threads(1)
    _worker.update(cell=cell, folder=folder, examples=cell.source.read())


def _store_in_worker(seed: int) -> int:
    return _store(**_worker, seed=seed)


def _store(cell: Cell, examples: BinaryExamples, folder: Path, seed: int) -> int:
    load_or_compute(
        results.file_of(folder, seed), lambda: results.to_json(run_repeat(cell, examples, seed, certify=seed == 0))
    )
    return seed


def _print(lines: Sequence[results.Line], notes: Sequence[str], files: Sequence[Path]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for note in notes:
        console.print(f"[dim]{plain(note)}[/]")
    table = Table(
        title=plain(f"{results.CELLS.get(lines[0].dataset, lines[0].dataset)}, {lines[0].model}"), title_justify="left"
    )
    for name in ("method", "tau", "published", "Jaccard", "published", "repeats", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for line in sorted(lines, key=lambda line: results.sort_key(line.method)):
        stated = PUBLISHED.get((line.dataset, line.model), {}).get(line.method)
        table.add_row(
            plain(line.method),
            str(line.tau),
            "" if stated is None else results.stated(stated.tau),
            str(line.jaccard),
            "" if stated is None else results.stated(stated.jaccard),
            f"{line.repeats}" + (f" ({line.failed} failed)" if line.failed else ""),
            f"{line.seconds:.2f}",
        )
    console.print(table)
    for file in files:
        console.print(f"[bold]{plain(file)}[/]", soft_wrap=True)
