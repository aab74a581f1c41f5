"""Estimates that do not follow the run, to compare with: influence functions at its end, the loss, chance."""

from lightning_sgdinf.baselines.base import Baseline as Baseline
from lightning_sgdinf.baselines.koh_liang import KohLiang as KohLiang
from lightning_sgdinf.baselines.loss import LossBaseline as LossBaseline
from lightning_sgdinf.baselines.random import RandomBaseline as RandomBaseline
from lightning_sgdinf.baselines.solvers import ConjugateGradient as ConjugateGradient
from lightning_sgdinf.baselines.solvers import Dense as Dense
from lightning_sgdinf.baselines.solvers import Lissa as Lissa
from lightning_sgdinf.baselines.solvers import MomentumDescent as MomentumDescent
