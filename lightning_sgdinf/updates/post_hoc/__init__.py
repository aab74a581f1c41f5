"""Methods that know nothing of the run but its end, to compare with; no claim is made for any of them."""

from lightning_sgdinf.updates.post_hoc.bad_teacher import BadTeacher as BadTeacher
from lightning_sgdinf.updates.post_hoc.fine_tuning import FineTuning as FineTuning
from lightning_sgdinf.updates.post_hoc.gradient_ascent import GradientAscent as GradientAscent
from lightning_sgdinf.updates.post_hoc.neg_grad_plus import NegGradPlus as NegGradPlus
from lightning_sgdinf.updates.post_hoc.random_labels import RandomLabels as RandomLabels
from lightning_sgdinf.updates.post_hoc.scrub import Scrub as Scrub
from lightning_sgdinf.updates.post_hoc.selective_dampening import SelectiveDampening as SelectiveDampening
from lightning_sgdinf.updates.post_hoc.student import Sgd as Sgd
