"""Values from many trainings: Data Shapley and its relatives, on top of counterfactual training.

`Shapley` where an answer is wanted that does not depend on what else is in the training set; `Banzhaf` where trainings
are noisy or examples are many; `KnnShapley` where there is no time; groups of examples as players, exactly, where the
question is about sources. `LeaveOneOut` and `GradientShapley` are for comparison.
"""

from lightning_sgdinf.valuation.banzhaf import Banzhaf as Banzhaf
from lightning_sgdinf.valuation.base import Value as Value
from lightning_sgdinf.valuation.control import Gains as Gains
from lightning_sgdinf.valuation.fresh import FreshTrainings as FreshTrainings
from lightning_sgdinf.valuation.gradient_shapley import GradientShapley as GradientShapley
from lightning_sgdinf.valuation.knn_shapley import KnnShapley as KnnShapley
from lightning_sgdinf.valuation.knn_shapley import knn_shapley as knn_shapley
from lightning_sgdinf.valuation.leave_one_out import LeaveOneOut as LeaveOneOut
from lightning_sgdinf.valuation.pydvl import PydvlGame as PydvlGame
from lightning_sgdinf.valuation.sampling import Sampling as Sampling
from lightning_sgdinf.valuation.shapley import BetaShapley as BetaShapley
from lightning_sgdinf.valuation.shapley import Shapley as Shapley
from lightning_sgdinf.valuation.stopping import Agreement as Agreement
from lightning_sgdinf.valuation.stopping import Settled as Settled
from lightning_sgdinf.valuation.stopping import StoppingRule as StoppingRule
from lightning_sgdinf.valuation.truncation import Truncation as Truncation
from lightning_sgdinf.valuation.utility import FunctionUtility as FunctionUtility
from lightning_sgdinf.valuation.utility import Utility as Utility
from lightning_sgdinf.valuation.utility import groups_of as groups_of
from lightning_sgdinf.valuation.valuation import Valuation as Valuation
