"""Ensembles trained in shards, that forget by training a part of one shard again."""

from lightning_sgdinf.ensembles.aggregation import Aggregation as Aggregation
from lightning_sgdinf.ensembles.aggregation import aggregate as aggregate
from lightning_sgdinf.ensembles.cost import Cost as Cost
from lightning_sgdinf.ensembles.influence import EnsembleLoss as EnsembleLoss
from lightning_sgdinf.ensembles.plan import ShardPlan as ShardPlan
from lightning_sgdinf.ensembles.sisa import Sisa as Sisa
from lightning_sgdinf.ensembles.sisa import Unlearned as Unlearned
