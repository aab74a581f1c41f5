"""Ways to turn a recorded run into scores.

Recommended: `SgdInfluence` (the exact derivative) and, at a fraction of its cost, `LastEpochs`; for small models
`AccumulatedInfluence`, nearest to real removal. For comparison: `NoHessian`, `TracIn`, `FinalParameters`, `KohLiang`,
`FisherLinear`.
"""

from lightning_sgdinf.estimators.accumulated import AccumulatedInfluence as AccumulatedInfluence
from lightning_sgdinf.estimators.base import Estimator as Estimator
from lightning_sgdinf.estimators.direct import DirectEstimator as DirectEstimator
from lightning_sgdinf.estimators.direct import Estimate as Estimate
from lightning_sgdinf.estimators.final_parameters import FinalParameters as FinalParameters
from lightning_sgdinf.estimators.fisher_linear import FisherLinear as FisherLinear
from lightning_sgdinf.estimators.koh_liang import KohLiang as KohLiang
from lightning_sgdinf.estimators.last_epochs import LastEpochs as LastEpochs
from lightning_sgdinf.estimators.no_hessian import NoHessian as NoHessian
from lightning_sgdinf.estimators.sgd_influence import SgdInfluence as SgdInfluence
from lightning_sgdinf.estimators.tracin import TracIn as TracIn
from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "Answer": "lightning_sgdinf.estimators.Estimate",
        "Question": "lightning_sgdinf.estimators.question.Question",
    },
)
