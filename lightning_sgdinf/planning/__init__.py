"""The cost of recording and replaying a run, before it is trained: a few steps of a copy, trained and walked back."""

from lightning_sgdinf.planning.costs import bare_costs as bare_costs
from lightning_sgdinf.planning.costs import recorded_costs as recorded_costs
from lightning_sgdinf.planning.plan import plan_run as plan_run
from lightning_sgdinf.planning.trial import Trial as Trial
