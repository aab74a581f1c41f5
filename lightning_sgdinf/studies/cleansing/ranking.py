"""Scores of one method on one repeat, cached on disk with their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lightning_sgdinf.baselines import Baseline, BaselineOfStates
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.estimators import DirectEstimator
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.cache import Json, load_or_compute
from lightning_sgdinf.studies.cleansing.repeat import Repeat
from lightning_sgdinf.studies.detection import detect_wrong_labels
from lightning_sgdinf.studies.recorded_run import StoredRun
from lightning_sgdinf.studies.results import MethodCost

logger = printable_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to rank the training examples.

    Attributes:
        name: Its name in tables.
        of: The estimator's name; the method's own but for an average.
        estimator: Or baseline.
        identity: Tells it from another of the same name: its configuration.
        runs: How many recorded runs on the same split its scores are the mean of, at least 1.
    """

    name: str
    of: str
    estimator: Any
    identity: Json
    runs: int = 1


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """Scores and their cost."""

    scores: Scores
    seconds: float
    read_bytes: int | None


def rank(repeat: Repeat, method: Method) -> tuple[Scores | None, MethodCost]:
    """Return a method's scores, computed unless they are on disk, and their cost.

    A method that raises one of this package's errors gives ``None`` and the reason; it is tried again the next time.
    """
    try:
        parts = [_ranked(repeat, method, number) for number in range(method.runs)]
    except SgdInfluenceError as error:
        logger.warning("%s: %s gave nothing: %s: %s", repeat.folder, method.name, type(error).__name__, error)
        return None, MethodCost(failed=f"{type(error).__name__}: {error}")
    scores, read = parts[0].scores, [part.read_bytes for part in parts]
    if len(parts) > 1:
        scores = _mean([part.scores for part in parts])
        scores.save(repeat.folder / "scores" / f"{method.name}.h5", overwrite=True)
    detection = detect_wrong_labels(repeat.data, scores)
    return scores, MethodCost(
        seconds=sum(part.seconds for part in parts),
        read_bytes=None if None in read else sum(b for b in read if b is not None),
        auroc=None if detection is None else detection.auroc,
        average_precision=None if detection is None else detection.average_precision,
    )


def _ranked(repeat: Repeat, method: Method, number: int) -> _Ranked:
    """Return the scores of one run, which an average and its estimator alone share."""
    run = repeat.run(number)
    identity = {"method": method.identity, "runs": [run.about["final_state"]]}
    file = repeat.folder / "scores" / (f"{method.of}_run_{number}.h5" if number else f"{method.of}.h5")

    def is_valid(about: Json) -> bool:
        return about["identity"] == identity and file.is_file()

    def compute() -> Json:
        if file.is_file():
            logger.warning("%s: scores of %s were of another definition or run", run.folder, method.of)
        return {**_scored(repeat, method, run, file), "identity": identity}

    about = load_or_compute(file.with_suffix(".json"), compute, is_valid=is_valid)
    return _Ranked(scores=Scores.load(file), seconds=about["seconds"], read_bytes=about["read_bytes"])


def _scored(repeat: Repeat, method: Method, run: StoredRun, file: Path) -> dict[str, Json]:
    logger.info("%s: scores of %s", run.folder, method.of)
    runner = repeat.parts.runner()
    with run.log() as log:
        read = read_bytes(method.estimator, log, run.about["state_bytes"])
    began = perf_counter()
    scores = runner.run(
        repeat.new_model(),
        repeat.data.train_dataloader(),
        repeat.loader(repeat.scoring),
        log=run.path,
        query=repeat.parts.query,
        estimator=method.estimator,
    )
    seconds = perf_counter() - began
    scores.save(file, overwrite=True)
    return {"seconds": seconds, "read_bytes": read}


def _mean(parts: Sequence[Scores]) -> Scores:
    values = torch.stack([scores.values for scores in parts]).mean(0)
    note = {"mean_of": [scores.provenance.get("log") for scores in parts]}
    return replace(
        parts[0], values=values, per_epoch=None, certificate=None, provenance={**parts[0].provenance, **note}
    )


def read_bytes(estimator: Any, log: RunLog, state_bytes: int) -> int | None:
    """Return the bytes of recorded states that a method reads, uncompressed: those that must be kept for it.

    Args:
        estimator: Or baseline, which reads the final state at most unless it says otherwise.
        log: The record.
        state_bytes: Of one state.

    Returns:
        The bytes; ``None`` if the method does not say.
    """
    if isinstance(estimator, BaselineOfStates):
        return len(estimator.state_indices(log)) * state_bytes
    if isinstance(estimator, Baseline):
        return state_bytes
    if isinstance(estimator, DirectEstimator):
        return None
    steps = range(estimator.first_step(log), len(log))
    return len({len(log), *(estimator.state_for(step, log) for step in steps)}) * state_bytes
