"""Exact influence of training examples for any Lightning run.

Add `TrajectoryRecorder` to a Trainer, train as before, and ask an `InfluenceRunner` how the model would have changed
without each training example.
"""

from pathlib import Path

from lightning_sgdinf.adjoint.rules import register_rule as register_rule
from lightning_sgdinf.certificate import Certificate as Certificate
from lightning_sgdinf.log import RunLog as RunLog
from lightning_sgdinf.ranking import Ranking as Ranking
from lightning_sgdinf.record import TrajectoryRecorder as TrajectoryRecorder
from lightning_sgdinf.runner import InfluenceRunner as InfluenceRunner
from lightning_sgdinf.scores import Scores as Scores

__version__ = "0.1.0"

# The Hydra configs lie in conf/ beside the package in a source tree and inside it in a wheel; both must be importable
# as lightning_sgdinf.conf.
if not (Path(__file__).parent / "conf").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
