"""The checks of a result, and how well it held."""

from lightning_sgdinf.certificate.certificate import Amplification as Amplification
from lightning_sgdinf.certificate.certificate import Certificate as Certificate
from lightning_sgdinf.certificate.certificate import Level as Level
from lightning_sgdinf.certificate.check import Check as Check
from lightning_sgdinf.certificate.check import GradientCheck as GradientCheck
from lightning_sgdinf.certificate.check import Outcome as Outcome
from lightning_sgdinf.certificate.check import StepReplay as StepReplay
from lightning_sgdinf.certificate.check import rounding_in as rounding_in
from lightning_sgdinf.certificate.trust import Trust as Trust
from lightning_sgdinf.certificate.trust import Window as Window
