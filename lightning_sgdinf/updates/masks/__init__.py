"""Criteria by which parameters are chosen that may change."""

from lightning_sgdinf.updates.masks.base import AllParameters as AllParameters
from lightning_sgdinf.updates.masks.base import ParameterCriterion as ParameterCriterion
from lightning_sgdinf.updates.masks.last import LastLayers as LastLayers
from lightning_sgdinf.updates.masks.layers import Layer as Layer
from lightning_sgdinf.updates.masks.random import RandomParameters as RandomParameters
from lightning_sgdinf.updates.masks.salient import SalientParameters as SalientParameters
from lightning_sgdinf.updates.masks.threshold import ThresholdUnits as ThresholdUnits
from lightning_sgdinf.updates.masks.unit_scores import unit_scores as unit_scores
from lightning_sgdinf.updates.masks.units import ExclusiveUnits as ExclusiveUnits
from lightning_sgdinf.updates.masks.units import HighestUnits as HighestUnits
from lightning_sgdinf.updates.masks.units import LowestUnits as LowestUnits
