"""What leaving examples out really does: the recorded run taken again without them, many times at once."""

from lightning_sgdinf.truth.counterfactuals import Counterfactuals as Counterfactuals
from lightning_sgdinf.truth.refine import Halving as Halving
from lightning_sgdinf.truth.refine import Screening as Screening
from lightning_sgdinf.truth.refine import Strategy as Strategy
from lightning_sgdinf.truth.refine import refine as refine
from lightning_sgdinf.truth.result import Truth as Truth
