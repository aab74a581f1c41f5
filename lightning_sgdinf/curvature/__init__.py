"""Curvature of the training loss at one state: products with it, and solvers."""

from lightning_sgdinf.curvature.fisher import DiagonalFisher as DiagonalFisher
from lightning_sgdinf.curvature.fisher import EmpiricalDiagonal as EmpiricalDiagonal
from lightning_sgdinf.curvature.fisher import ExactDiagonal as ExactDiagonal
from lightning_sgdinf.curvature.fisher import Fisher as Fisher
from lightning_sgdinf.curvature.fisher import FisherMatrix as FisherMatrix
from lightning_sgdinf.curvature.fisher import KroneckerBlock as KroneckerBlock
from lightning_sgdinf.curvature.fisher import KroneckerFactors as KroneckerFactors
from lightning_sgdinf.curvature.fisher import KroneckerFisher as KroneckerFisher
from lightning_sgdinf.curvature.likelihood import Likelihood as Likelihood
from lightning_sgdinf.curvature.likelihood import class_logits as class_logits
from lightning_sgdinf.curvature.likelihood import likelihood_at as likelihood_at
from lightning_sgdinf.curvature.products import TrainingCurvature as TrainingCurvature
from lightning_sgdinf.curvature.restarted_lissa import RestartedLissa as RestartedLissa
from lightning_sgdinf.curvature.solvers import ConjugateGradient as ConjugateGradient
from lightning_sgdinf.curvature.solvers import Dense as Dense
from lightning_sgdinf.curvature.solvers import Lissa as Lissa
from lightning_sgdinf.curvature.solvers import MomentumDescent as MomentumDescent
from lightning_sgdinf.curvature.solvers import Solution as Solution
from lightning_sgdinf.curvature.solvers import Solver as Solver
from lightning_sgdinf.curvature.solvers import System as System
