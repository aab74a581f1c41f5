"""Repair: find what caused failures on held-out data, treat the model, judge by failures that nobody looked at."""

from lightning_sgdinf.updates.repair.consolidation import ElasticWeights as ElasticWeights
from lightning_sgdinf.updates.repair.consolidation import learnt as learnt
from lightning_sgdinf.updates.repair.failures import FailureChanges as FailureChanges
from lightning_sgdinf.updates.repair.failures import Failures as Failures
from lightning_sgdinf.updates.repair.failures import choosing_loss as choosing_loss
