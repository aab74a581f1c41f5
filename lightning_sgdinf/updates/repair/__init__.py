"""Repair: find what caused failures on held-out data, treat the model, judge by failures that nobody looked at."""

from lightning_sgdinf.updates.repair.certified import CertifiedlyRemoved as CertifiedlyRemoved
from lightning_sgdinf.updates.repair.certified import CertifiedRemoval as CertifiedRemoval
from lightning_sgdinf.updates.repair.certified import LogisticProblem as LogisticProblem
from lightning_sgdinf.updates.repair.consolidation import ElasticWeights as ElasticWeights
from lightning_sgdinf.updates.repair.consolidation import learnt as learnt
from lightning_sgdinf.updates.repair.energy import AlignedInputs as AlignedInputs
from lightning_sgdinf.updates.repair.energy import EnergyAligned as EnergyAligned
from lightning_sgdinf.updates.repair.energy import EnergyAlignment as EnergyAlignment
from lightning_sgdinf.updates.repair.energy import align as align
from lightning_sgdinf.updates.repair.energy import input_range as input_range
from lightning_sgdinf.updates.repair.ewc_ascent import EwcAscent as EwcAscent
from lightning_sgdinf.updates.repair.failures import FailureChanges as FailureChanges
from lightning_sgdinf.updates.repair.failures import Failures as Failures
from lightning_sgdinf.updates.repair.failures import choosing_loss as choosing_loss
from lightning_sgdinf.updates.repair.fisher_step import FisherStep as FisherStep
from lightning_sgdinf.updates.repair.relabelled import Relabelled as Relabelled
from lightning_sgdinf.updates.repair.relabelled import RelabelledReplay as RelabelledReplay
from lightning_sgdinf.updates.repair.reweighted import ReweightedReplay as ReweightedReplay
