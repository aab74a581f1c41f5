"""Exact influence of training examples for any Lightning run.

Add `TrajectoryRecorder` to a Trainer, train as before, and ask an `InfluenceRunner` how the model would have changed
without each training example. `ScoreOnFitEnd` does both in one.

Importing this package imports nothing else: what is named here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sgdinf.adjoint import register_rule as register_rule
    from lightning_sgdinf.certificate import Certificate as Certificate
    from lightning_sgdinf.fit_end import ScoreOnFitEnd as ScoreOnFitEnd
    from lightning_sgdinf.log import RunLog as RunLog
    from lightning_sgdinf.ranking import Ranking as Ranking
    from lightning_sgdinf.record import TrajectoryRecorder as TrajectoryRecorder
    from lightning_sgdinf.runner import InfluenceRunner as InfluenceRunner
    from lightning_sgdinf.scores import Scores as Scores
    from lightning_sgdinf.selection import Selection as Selection

__version__ = "0.1.0"

_HOMES = {
    "register_rule": "adjoint",
    "Certificate": "certificate",
    "ScoreOnFitEnd": "fit_end",
    "RunLog": "log",
    "Ranking": "ranking",
    "TrajectoryRecorder": "record",
    "InfluenceRunner": "runner",
    "Scores": "scores",
    "Selection": "selection",
}

# The classes; `register_rule`, a function that a module calls once, is imported by name.
__all__ = [
    "TrajectoryRecorder",
    "InfluenceRunner",
    "ScoreOnFitEnd",
    "Scores",
    "Certificate",
    "Ranking",
    "Selection",
    "RunLog",
]

# The Hydra configs lie in conf/ beside the package in a source tree and inside it in a wheel; both must be importable
# as lightning_sgdinf.conf.
if not (Path(__file__).parent / "conf").is_dir():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next use finds it without asking
    return value


def __dir__() -> list[str]:
    return [*sorted(_HOMES), "__version__"]
