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
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report import save_scatter
from lightning_sgdinf.tasks.job import OF_THE_MAIN_JOB, Parts
from lightning_sgdinf.tasks.lie import results
from lightning_sgdinf.tasks.lie.cell import Cell, Protocol, run_repeat
from lightning_sgdinf.tasks.lie.published import PUBLISHED

SHOWN = ("sgd_influence", "accumulated_evaluated", "koh_liang_paper")
"""Methods that the figure of a cell shows."""


@dataclass(frozen=True, kw_only=True)
class LieJob:
    """How well influence estimates agree with the truth, as in section 7.1 of the SGD-influence paper.

    Results go to ``output_dir``, one file per repeat; what is there is not done again, so a job that was interrupted
    goes on, and one with more repeats adds to those that are there. The tables (``table.md``, ``table.csv``) are those
    of all cells in the folder.

    In a configuration::

        job:
          _target_: lightning_sgdinf.tasks.lie.LieJob
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

    leaves_aside: ClassVar[Mapping[str, str]] = {
        **OF_THE_MAIN_JOB,
        "seed": "it has seeds",
        "optimizer": "job.protocols has its learning rates",
        "query": "it asks the mean validation loss",
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
        """The repeats that are not there yet, and the tables.

        Returns:
            The mean tau of the exact derivative.

        Raises:
            ConfigurationError: No protocol for the data set and the model, or a folder with results of other settings.
        """
        cell = self.cell(parts)
        place = parts.folder / f"{cell.dataset}_{cell.model}"
        results.claim(place, self._settings(cell))
        todo = [seed for seed in range(self.seeds) if not results.file_of(place, seed).is_file()]
        with tqdm(total=self.seeds, initial=self.seeds - len(todo), desc=place.name, unit=" repeats") as bar:
            for _ in _done(cell, place, todo, self.workers):
                bar.update()
        lines = [
            line for line in results.assemble(parts.folder) if (line.dataset, line.model) == (cell.dataset, cell.model)
        ]
        shown = results.repeats(place)[0]
        figure = parts.folder / f"{place.name}.png"
        save_scatter(
            shown.true,
            {results.name_of(name): shown.estimates[name] for name in SHOWN if name in shown.estimates},
            figure,
        )
        _print(lines, shown.notes, [parts.folder / results.PAGE, figure])
        return next(line.tau.mean for line in lines if line.method == "sgd_influence")

    def cell(self, parts: Parts) -> Cell:
        """The cell that the configuration's groups name."""
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
        """What results of one folder must have in common."""
        return {
            "dataset": cell.dataset,
            "model": cell.model,
            "size": cell.size,
            "protocol": asdict(cell.protocol),
        }


_at_hand: dict[str, Any] = {}
"""What a worker process keeps between repeats."""


def _done(cell: Cell, place: Path, todo: Sequence[int], workers: int) -> Iterator[int]:
    """Seeds, as their repeats are done and saved."""
    if not todo:
        return
    if workers == 1:
        examples = cell.source.read()
        for seed in todo:
            results.save(place, run_repeat(cell, examples, seed, certify=seed == 0))
            yield seed
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(cell, place)) as pool:
        for future in as_completed([pool.submit(_repeat, seed) for seed in todo]):
            yield future.result()


def _begin(cell: Cell, place: Path) -> None:
    torch.set_num_threads(1)
    _at_hand.update(cell=cell, place=place, examples=cell.source.read())


def _repeat(seed: int) -> int:
    found = run_repeat(_at_hand["cell"], _at_hand["examples"], seed, certify=seed == 0)
    results.save(_at_hand["place"], found)
    return seed


def _print(lines: Sequence[results.Line], notes: Sequence[str], files: Sequence[Path]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for note in notes:
        console.print(f"[dim]{note}[/]")
    table = Table(
        title=f"{results.CELLS.get(lines[0].dataset, lines[0].dataset)}, {lines[0].model}", title_justify="left"
    )
    for name in ("method", "tau", "published", "Jaccard", "published", "repeats", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for line in sorted(lines, key=lambda line: results.place_of(line.method)):
        stated = PUBLISHED.get((line.dataset, line.model), {}).get(line.method)
        table.add_row(
            line.method,
            str(line.tau),
            "" if stated is None else results.stated(stated.tau),
            str(line.jaccard),
            "" if stated is None else results.stated(stated.jaccard),
            f"{line.repeats}" + (f" ({line.failed} failed)" if line.failed else ""),
            f"{line.seconds:.2f}",
        )
    console.print(table)
    for file in files:
        console.print(f"[bold]{file}[/]", soft_wrap=True)
