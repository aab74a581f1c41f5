"""Curvature of the training loss at one state: products with it, and solvers."""

from lightning_sgdinf.curvature.products import TrainingCurvature as TrainingCurvature
from lightning_sgdinf.curvature.restarted_lissa import RestartedLissa as RestartedLissa
from lightning_sgdinf.curvature.solvers import ConjugateGradient as ConjugateGradient
from lightning_sgdinf.curvature.solvers import Dense as Dense
from lightning_sgdinf.curvature.solvers import Lissa as Lissa
from lightning_sgdinf.curvature.solvers import MomentumDescent as MomentumDescent
from lightning_sgdinf.curvature.solvers import Solution as Solution
from lightning_sgdinf.curvature.solvers import Solver as Solver
from lightning_sgdinf.curvature.solvers import System as System
