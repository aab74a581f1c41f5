"""Scores refined by real counterfactual runs of the few examples that matter."""

from lightning_sgdinf.refinement.refine import Halving as Halving
from lightning_sgdinf.refinement.refine import Screening as Screening
from lightning_sgdinf.refinement.refine import Strategy as Strategy
from lightning_sgdinf.refinement.refine import refine as refine
