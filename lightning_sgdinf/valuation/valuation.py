"""The outcome of a valuation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_sgdinf.valuation.schemes import Ends


@dataclass(frozen=True, kw_only=True, eq=False)
class Valuation:
    """Values of ``P`` players for ``Q`` queries: positive where a player raises the query.

    Attributes:
        values: Float64 ``[P, Q]``, in units of the query.
        standard_error: Of sampling, float64 ``[P, Q]``; ``None`` where nothing was sampled or too little to tell.
        queries: ``Q`` names.
        ends: The queries' values with nobody and with everybody, ``[Q]`` each.
        rounds: Permutations, or rounds of coalitions, that were used.
        trainings: Coalitions asked by this computation; what an earlier one left in a file does not count.
        agreement: Rank correlation to be expected with another such computation, ``[Q]``, from two halves of this one
            (Spearman-Brown); ``None`` for exact values, and where a single block of rounds was sampled.
        seconds: Wall time.
        process_seconds: Processor time of this process.
        exact: Nothing was sampled.
    """

    values: Tensor
    standard_error: Tensor | None
    queries: tuple[str, ...]
    ends: Ends
    rounds: int
    trainings: int
    agreement: Tensor | None
    seconds: float
    process_seconds: float
    exact: bool = False

    def notes(self) -> tuple[str, ...]:
        """Return the sentences that a reader of the values must know."""
        rows = list(zip(self.queries, self.ends.empty.tolist(), self.ends.full.tolist(), strict=True))[:3]
        ends = ", ".join(f"{name} from {empty:.6g} to {full:.6g}" for name, empty, full in rows)
        lines = [f"Training on nobody and on everybody: {ends}{' ...' if len(self.queries) > 3 else ''}."]
        if self.exact:
            return (*lines, f"Exact: {self.trainings} coalitions were trained on.")
        taken = f"{self.rounds} rounds, {self.trainings} trainings in {self.seconds:.1f} s"
        if self.agreement is None:
            return (*lines, f"{taken}; how far another computation would rank alike is not known from so few.")
        return (
            *lines,
            f"{taken}; another computation as long would rank alike to {self.agreement.min():.2f} (rank correlation, "
            "from two halves).",
        )
