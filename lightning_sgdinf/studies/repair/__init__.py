"""Repair: causes of failures, treatments of the model, both judged on held-out failures and test data."""

from lightning_sgdinf.studies.repair.causes import BlamedBy as BlamedBy
from lightning_sgdinf.studies.repair.causes import CombinedCauses as CombinedCauses
from lightning_sgdinf.studies.repair.causes import KnownCorrupt as KnownCorrupt
from lightning_sgdinf.studies.repair.causes import Proposed as Proposed
from lightning_sgdinf.studies.repair.causes import RankedBy as RankedBy
from lightning_sgdinf.studies.repair.corruptions import CorruptedInputs as CorruptedInputs
from lightning_sgdinf.studies.repair.corruptions import CorruptedLabels as CorruptedLabels
from lightning_sgdinf.studies.repair.corruptions import MissingGroup as MissingGroup
from lightning_sgdinf.studies.repair.job import RepairJob as RepairJob
