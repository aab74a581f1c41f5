"""What does not follow the run, to compare with: influence functions at its end, outliers, the loss, chance."""

from lightning_sgdinf.baselines.area_under_margin import AreaUnderMargin as AreaUnderMargin
from lightning_sgdinf.baselines.autoencoder import Autoencoder as Autoencoder
from lightning_sgdinf.baselines.base import Baseline as Baseline
from lightning_sgdinf.baselines.base import BaselineOfStates as BaselineOfStates
from lightning_sgdinf.baselines.confident_learning import ConfidentLearning as ConfidentLearning
from lightning_sgdinf.baselines.evidence import Evidence as Evidence
from lightning_sgdinf.baselines.examples import Examples as Examples
from lightning_sgdinf.baselines.isolation_forest import IsolationForest as IsolationForest
from lightning_sgdinf.baselines.local_outlier_factor import LocalOutlierFactor as LocalOutlierFactor
from lightning_sgdinf.baselines.loss import LossBaseline as LossBaseline
from lightning_sgdinf.baselines.margin import MarginBaseline as MarginBaseline
from lightning_sgdinf.baselines.one_class_svm import OneClassSvm as OneClassSvm
from lightning_sgdinf.baselines.random import RandomBaseline as RandomBaseline
from lightning_sgdinf.curvature.solvers import ConjugateGradient as ConjugateGradient
from lightning_sgdinf.curvature.solvers import Dense as Dense
from lightning_sgdinf.curvature.solvers import Lissa as Lissa
from lightning_sgdinf.curvature.solvers import MomentumDescent as MomentumDescent
from lightning_sgdinf.estimators.koh_liang import KohLiang as KohLiang
