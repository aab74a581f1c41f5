"""What a walk does at each step.

Recommended: `SgdInfluence` (the exact derivative) and, at a fraction of its cost, `LastEpochs`. For comparison:
`NoHessian`, `TracIn`, `FinalParameters`.
"""

from lightning_sgdinf.estimators.base import Estimator as Estimator
from lightning_sgdinf.estimators.final_parameters import FinalParameters as FinalParameters
from lightning_sgdinf.estimators.last_epochs import LastEpochs as LastEpochs
from lightning_sgdinf.estimators.no_hessian import NoHessian as NoHessian
from lightning_sgdinf.estimators.sgd_influence import SgdInfluence as SgdInfluence
from lightning_sgdinf.estimators.tracin import TracIn as TracIn
