"""Rankings that do not walk, to compare with."""

from lightning_sgdinf.baselines.base import Baseline as Baseline
from lightning_sgdinf.baselines.loss import LossBaseline as LossBaseline
from lightning_sgdinf.baselines.random import RandomBaseline as RandomBaseline
