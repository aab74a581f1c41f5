"""One step along an influence direction: Koh and Liang's, and the generalized influence functions."""

from lightning_sgdinf.updates.influence.directions import FreezingDirection as FreezingDirection
from lightning_sgdinf.updates.influence.directions import GeneralizedDirection as GeneralizedDirection
from lightning_sgdinf.updates.influence.directions import InfluenceDirection as InfluenceDirection
from lightning_sgdinf.updates.influence.directions import OriginalDirection as OriginalDirection
from lightning_sgdinf.updates.influence.directions import PlainGradient as PlainGradient
from lightning_sgdinf.updates.influence.directions import ProjectingDirection as ProjectingDirection
from lightning_sgdinf.updates.influence.directions import SecondOrderDirection as SecondOrderDirection
from lightning_sgdinf.updates.influence.problem import InfluenceProblem as InfluenceProblem
from lightning_sgdinf.updates.influence.problem import influence_problem as influence_problem
from lightning_sgdinf.updates.influence.published import PublishedInfluenceStep as PublishedInfluenceStep
from lightning_sgdinf.updates.influence.step import InfluenceStep as InfluenceStep
from lightning_sgdinf.updates.influence.step_length import NaturalStep as NaturalStep
from lightning_sgdinf.updates.influence.step_length import StepLength as StepLength
from lightning_sgdinf.updates.influence.step_length import StepToTheStop as StepToTheStop
