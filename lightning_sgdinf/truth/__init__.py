"""The effect of leaving examples out, measured: the recorded run re-run without them, many times at once."""

from lightning_sgdinf.renamed import renamed
from lightning_sgdinf.truth.counterfactuals import Counterfactuals as Counterfactuals
from lightning_sgdinf.truth.memory import clock as clock
from lightning_sgdinf.truth.plan import first_drawn as first_drawn
from lightning_sgdinf.truth.removals import MeasuredRemovals as MeasuredRemovals
from lightning_sgdinf.truth.removals import Pace as Pace
from lightning_sgdinf.truth.removals import Removals as Removals
from lightning_sgdinf.truth.result import Truth as Truth
from lightning_sgdinf.truth.workers import Workers as Workers

__getattr__ = renamed(
    __name__,
    {name: f"lightning_sgdinf.refinement.{name}" for name in ("Halving", "Screening", "Strategy", "refine")},
)
