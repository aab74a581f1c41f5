"""The effect of leaving examples out, measured: the recorded run re-run without them, many times at once."""

from lightning_sgdinf.renamed import renamed
from lightning_sgdinf.truth.counterfactuals import Counterfactuals as Counterfactuals
from lightning_sgdinf.truth.result import Truth as Truth

__getattr__ = renamed(
    __name__,
    {name: f"lightning_sgdinf.refinement.{name}" for name in ("Halving", "Screening", "Strategy", "refine")},
)
