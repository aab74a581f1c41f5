"""Forwards: a recorded step taken again, as it was or with other example weights."""

from lightning_sgdinf.replay.counterfactual import CounterfactualRun as CounterfactualRun
from lightning_sgdinf.replay.edits import Edit as Edit
from lightning_sgdinf.replay.edits import ReplaceLabels as ReplaceLabels
from lightning_sgdinf.replay.edits import relabelled as relabelled
from lightning_sgdinf.replay.edits import replace_second as replace_second
from lightning_sgdinf.replay.epochs import epoch_start as epoch_start
from lightning_sgdinf.replay.epochs import first_step_of as first_step_of
from lightning_sgdinf.replay.examples import Examples as Examples
from lightning_sgdinf.replay.objective import Objective as Objective
from lightning_sgdinf.replay.opened import OpenedRun as OpenedRun
from lightning_sgdinf.replay.replayer import Divisor as Divisor
from lightning_sgdinf.replay.replayer import Replayer as Replayer
