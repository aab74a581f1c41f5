"""What leaving examples out really does: the recorded run taken again without them, many times at once."""

from lightning_sgdinf.truth.counterfactuals import Counterfactuals as Counterfactuals
from lightning_sgdinf.truth.result import Truth as Truth
