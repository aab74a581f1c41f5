"""A trained run and a selection in, another model out."""

from lightning_sgdinf.updates.base import ModelUpdate as ModelUpdate
from lightning_sgdinf.updates.base import Retraining as Retraining
from lightning_sgdinf.updates.base import Updated as Updated
from lightning_sgdinf.updates.counterfactual import CounterfactualReplay as CounterfactualReplay
from lightning_sgdinf.updates.datasets import ReducedDataset as ReducedDataset
from lightning_sgdinf.updates.datasets import RelabelledDataset as RelabelledDataset
from lightning_sgdinf.updates.datasets import cleansed_dataset as cleansed_dataset
from lightning_sgdinf.updates.datasets import replace_label as replace_label
from lightning_sgdinf.updates.extrapolated import ExtrapolatedReplay as ExtrapolatedReplay
from lightning_sgdinf.updates.extrapolated import ExtrapolatedUpdate as ExtrapolatedUpdate
from lightning_sgdinf.updates.forgotten import Corrected as Corrected
from lightning_sgdinf.updates.forgotten import Forgotten as Forgotten
from lightning_sgdinf.updates.fresh import FreshTraining as FreshTraining
from lightning_sgdinf.updates.impaired import ImpairedReplay as ImpairedReplay
from lightning_sgdinf.updates.loading import load_state as load_state
from lightning_sgdinf.updates.loading import state_of as state_of
from lightning_sgdinf.updates.loading import with_state as with_state
