"""What a walk does at each step, and what answers without the walk backwards.

Recommended: `SgdInfluence` (the exact derivative) and, at a fraction of its cost, `LastEpochs`; for small models
`AccumulatedInfluence`, nearest to real removal. For comparison: `NoHessian`, `TracIn`, `FinalParameters`.
"""

from lightning_sgdinf.estimators.accumulated import AccumulatedInfluence as AccumulatedInfluence
from lightning_sgdinf.estimators.base import Estimator as Estimator
from lightning_sgdinf.estimators.direct import Answer as Answer
from lightning_sgdinf.estimators.direct import DirectEstimator as DirectEstimator
from lightning_sgdinf.estimators.direct import Question as Question
from lightning_sgdinf.estimators.final_parameters import FinalParameters as FinalParameters
from lightning_sgdinf.estimators.last_epochs import LastEpochs as LastEpochs
from lightning_sgdinf.estimators.no_hessian import NoHessian as NoHessian
from lightning_sgdinf.estimators.sgd_influence import SgdInfluence as SgdInfluence
from lightning_sgdinf.estimators.tracin import TracIn as TracIn
