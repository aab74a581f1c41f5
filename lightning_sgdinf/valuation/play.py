"""Rounds of a sampling scheme, asked many at once, kept on disk, until there are enough or a rule says so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.truth.ledger import Ledger
from lightning_sgdinf.valuation.schemes import Ends, Scheme
from lightning_sgdinf.valuation.spread import Asking
from lightning_sgdinf.valuation.stopping import CHECKED, StoppingRule, halves_agree
from lightning_sgdinf.valuation.truncation import Truncation
from lightning_sgdinf.valuation.utility import Utility, everybody
from lightning_sgdinf.valuation.valuation import Valuation

AT_ONCE = 2000
"""Coalitions that are asked in one go; a utility takes fewer at once where memory is short."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """The settings of sampling.

    Attributes:
        rounds: At most; whole blocks are taken.
        stop: Ends it sooner; ``None`` takes all rounds.
        truncation: Ends a round sooner.
        resume: A file that keeps what is done so far; ``None`` for none.
        key: Tells what is sampled from anything else, for that file.
        jobs: Processes.
        progress: Show a progress bar with the time left on standard error.
        at_once: Coalitions asked in one go; decides about time and memory, not about values.
    """

    rounds: int
    stop: StoppingRule | None = None
    truncation: Truncation | None = None
    resume: str | Path | None = None
    key: str = ""
    jobs: int = 1
    progress: bool = False
    at_once: int = AT_ONCE

    def values(self, utility: Utility, scheme: Scheme) -> Valuation:
        """Sample.

        Raises:
            ConfigurationError: A number out of range, or a file of another computation.
        """
        return _Game(self, utility, scheme).played()


@dataclass
class _Game:
    play: Play
    utility: Utility
    scheme: Scheme
    asked: int = 0
    clocks: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def __post_init__(self) -> None:
        if self.play.rounds < 1:
            raise ConfigurationError(f"expected at least 1 round, got {self.play.rounds}")
        block = self.scheme.block
        self.rounds = -(-self.play.rounds // block) * block
        self.asking = Asking(self.utility, self.play.jobs)
        nobody = torch.zeros(1, self.utility.players, dtype=torch.bool)
        self.ends = Ends(*self.asking(torch.cat([nobody, everybody(self.utility)])))
        self.ledger = self._open_ledger()

    def played(self) -> Valuation:
        try:
            taken = self._take()
        finally:
            self.ledger.save()
        size = self.scheme.size
        values = self.ledger.values[: taken * size].unflatten(0, (taken, size))
        sampled = self.scheme.estimate(range(taken), values, self.ends)
        agreement = halves_agree(taken, self._estimator()) if taken >= 2 * self.scheme.block else None
        began, process = self.clocks
        return Valuation(
            values=sampled.values,
            standard_error=None if bool(sampled.standard_error.isnan().any()) else sampled.standard_error,
            queries=self.utility.names,
            ends=self.ends,
            rounds=taken,
            trainings=self.asked,
            agreement=agreement,
            seconds=time.perf_counter() - began,
            process_seconds=time.process_time() - process,
        )

    def _take(self) -> int:
        """Ask for rounds until there are enough; return how many count."""
        size, jobs = self.scheme.size, self.play.jobs
        chunk = max(1, jobs * self.play.at_once // max(size, 1))
        checked = 0
        with self._bar() as bar:
            for start in range(0, self.rounds, chunk):
                stop = min(start + chunk, self.rounds)
                left = [r for r in range(start, stop) if not self.ledger.done[r * size]]
                if left:
                    self._ask(left)
                bar.update((stop - start) * size)
                if self.play.stop is None:
                    continue
                for rounds in range(checked + CHECKED, stop + 1, CHECKED):
                    checked = rounds
                    if self.play.stop.reached(rounds, self._estimator()):
                        return rounds
        return self.rounds

    def _ask(self, rounds: list[int]) -> None:
        coalitions = torch.stack([self.scheme.coalitions(r) for r in rounds])
        if self.play.truncation is None:
            values, asked = self.asking(coalitions.flatten(0, 1)), coalitions.shape[0] * coalitions.shape[1]
        else:
            values, asked = self.play.truncation.ask(coalitions, self.asking, self.ends.full)
            values = values.flatten(0, 1)
        self.asked += asked
        size = self.scheme.size
        self.ledger.add([r * size + k for r in rounds for k in range(size)], values, asked)

    def _estimator(self) -> Callable[[int, int], Tensor]:
        size = self.scheme.size

        def values(start: int, stop: int) -> Tensor:
            block = self.scheme.block
            start, stop = start // block * block, max(stop // block * block, start // block * block + block)
            rows = self.ledger.values[start * size : stop * size].unflatten(0, (stop - start, size))
            return self.scheme.estimate(range(start, stop), rows, self.ends).values

        return values

    def _open_ledger(self) -> Ledger:
        size = self.scheme.size
        # More rounds may be asked for than the file was begun with, or fewer.
        return Ledger(self.play.resume, self.play.key, self.rounds * size, len(self.utility.names), may_grow=True)

    def _bar(self) -> Any:
        return tqdm(
            total=self.rounds * self.scheme.size,
            desc="training on coalitions",
            unit=" trainings",
            disable=not self.play.progress,
            dynamic_ncols=True,
            file=sys.stderr,
            leave=False,
        )
