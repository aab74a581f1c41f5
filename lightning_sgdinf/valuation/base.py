"""Common to the values of this room: they are estimators of a runner, and answer for any utility besides.

As an estimator a value is given a recorded run and a query. Scores have the product's sign: minus the value, which is
what the query loses by an example; so that rankings, strategies and reports need not know that they look at values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_sgdinf.adjoint import BoundQuery
from lightning_sgdinf.estimators import Estimate
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.valuation.control import Gains, predicted_gains
from lightning_sgdinf.valuation.fresh import FreshTrainings
from lightning_sgdinf.valuation.play import Play
from lightning_sgdinf.valuation.recorded import RecordedUtility
from lightning_sgdinf.valuation.stopping import StoppingRule
from lightning_sgdinf.valuation.utility import Groups, Utility
from lightning_sgdinf.valuation.valuation import Valuation


@dataclass(frozen=True, kw_only=True)
class Value(ABC):
    """A value of each training example, from many trainings on some of them.

    Attributes:
        groups: Example ids of each player, where classes, sources or annotators are valued and not single examples: see
            `groups_of`. An example's score is then an equal share of its group's; one of no group is always trained on,
            and has 0.
        trainings: How a model is trained on some of the examples; ``None`` takes the recorded run again without the
            others, many runs at once.
        resume: A file that keeps what is trained so far; a later computation with it goes on from there.
        jobs: Processes that train side by side, on the backend that joblib has been told to use.
    """

    groups: Groups | None = None
    trainings: FreshTrainings | None = None
    resume: str | Path | None = None
    jobs: int = 1

    @abstractmethod
    def value(self, utility: Utility, *, gains: Tensor | None = None, progress: bool = False) -> Valuation:
        """Return the values of a utility's players.

        Args:
            utility: The game; ``groups`` and ``trainings`` are not asked.
            gains: What each player is predicted to add, ``[P, Q]`` or ``[P, 1]``, for those that take a predictor.
            progress: Show a progress bar with the time left on standard error.
        """
        ...

    @property
    def predictor(self) -> Gains | None:
        """Return what predicts the players' gains, if this value takes a control variate."""
        return None

    @property
    def meaning(self) -> str:
        """Return what the scores are, in a sentence."""
        return (
            f"{type(self).__name__}: what leaving the example out of a coalition of the others changes, on average "
            "over coalitions; not the change of this run without it."
        )

    def estimate(self, run: OpenedRun, query: BoundQuery) -> Estimate:
        """Return minus the values, see `DirectEstimator`, with their standard errors.

        Raises:
            ConfigurationError: Arguments that do not go together, or a file of another computation.
            SgdInfluenceError: What training without some examples raises.
        """
        made = self.utility(run, query)
        gains = None if self.predictor is None else predicted_gains(self.predictor, run, query, made.members)
        valuation = self.value(made, gains=gains, progress=run.progress)
        error = valuation.standard_error
        return Estimate(
            values=-_of_examples(valuation.values, made.members, run.examples),
            notes=(*valuation.notes(), *made.notes, *_of_groups(valuation, made.groups)),
            standard_error=None if error is None else _of_examples(error, made.members, run.examples),
            meaning=self.meaning,
        )

    def utility(self, run: OpenedRun, query: BoundQuery) -> RecordedUtility:
        """Return the utility that a run and a query make: by its counterfactuals, or by ``trainings``."""
        if self.trainings is None:
            return RecordedUtility(run, query, self.groups)
        return self.trainings.utility(run, query, self.groups)


@dataclass(frozen=True, kw_only=True)
class SampledValue(Value):
    """A value that is sampled.

    Attributes:
        seed: Of what is drawn; of each round by itself, so that nothing depends on what is taken at once.
        stop: Ends the sampling before all rounds are taken: `Agreement`, or the paper's `Settled`.
    """

    seed: int = 0
    stop: StoppingRule | None = None

    def play(self, utility: Utility, rounds: int, scheme: object, *, progress: bool) -> Play:
        """Return how to sample rounds of a scheme."""
        return Play(
            rounds=rounds,
            stop=self.stop,
            resume=self.resume,
            key=repr((getattr(utility, "key", repr(utility)), scheme)),
            jobs=self.jobs,
            progress=progress,
        )


def _of_examples(values: Tensor, members: Groups, examples: int) -> Tensor:
    """Return each example's share ``[N, Q]`` of its player's value ``[P, Q]``; 0 without a player."""
    shares = torch.zeros(examples, values.shape[1], dtype=torch.float64)
    for player, ids in enumerate(members):
        shares[list(ids)] = values[player] / len(ids)
    return shares


def _of_groups(valuation: Valuation, groups: Groups | None) -> tuple[str, ...]:
    """Return a sentence with the value of each group, for the first query."""
    if groups is None:
        return ()
    errors = valuation.standard_error
    parts = [
        f"{number} ({len(members)} examples) {float(valuation.values[number, 0]):.4g}"
        + ("" if errors is None else f" ± {float(errors[number, 0]):.2g}")
        for number, members in enumerate(groups[:30])
    ]
    return (f"Values of the groups, {valuation.queries[0]}: {', '.join(parts)}{' ...' if len(groups) > 30 else ''}.",)
