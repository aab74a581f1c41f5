"""Rankings that ask no query, to compare with: outliers, the loss, margins, chance."""

from lightning_sgdinf.baselines.area_under_margin import AreaUnderMargin as AreaUnderMargin
from lightning_sgdinf.baselines.autoencoder import Autoencoder as Autoencoder
from lightning_sgdinf.baselines.base import Baseline as Baseline
from lightning_sgdinf.baselines.base import BaselineOfStates as BaselineOfStates
from lightning_sgdinf.baselines.confident_learning import ConfidentLearning as ConfidentLearning
from lightning_sgdinf.baselines.elastic_weights import TwoModels as TwoModels
from lightning_sgdinf.baselines.isolation_forest import IsolationForest as IsolationForest
from lightning_sgdinf.baselines.local_outlier_factor import LocalOutlierFactor as LocalOutlierFactor
from lightning_sgdinf.baselines.loss import LossBaseline as LossBaseline
from lightning_sgdinf.baselines.margin import MarginBaseline as MarginBaseline
from lightning_sgdinf.baselines.one_class_svm import OneClassSvm as OneClassSvm
from lightning_sgdinf.baselines.random import RandomBaseline as RandomBaseline
from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "Evidence": "lightning_sgdinf.replay.OpenedRun",
        "Examples": "lightning_sgdinf.replay.Examples",
        "KohLiang": "lightning_sgdinf.estimators.KohLiang",
        **{
            solver: f"lightning_sgdinf.curvature.{solver}"
            for solver in ("ConjugateGradient", "Dense", "Lissa", "MomentumDescent")
        },
    },
)
