"""Scores of one method on one repeat, kept on disk with what they took."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lightning_sgdinf.baselines import Baseline, BaselineOfStates
from lightning_sgdinf.errors import SgdInfluenceError
from lightning_sgdinf.estimators import DirectEstimator
from lightning_sgdinf.evaluation import detect
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.tasks.cleansing.repeat import RecordedRun, Repeat
from lightning_sgdinf.tasks.pieces import Json, found_or_made
from lightning_sgdinf.tasks.results import MethodCost

_say = logging.getLogger(__name__)


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
    """Scores, and what they took."""

    scores: Scores
    seconds: float
    read_bytes: int | None


def rank(repeat: Repeat, method: Method) -> tuple[Scores | None, MethodCost]:
    """A method's scores, made unless they are there, and what they took.

    A method that raises one of this package's errors gives ``None`` and the reason; it is tried again the next time.
    """
    try:
        parts = [_ranked(repeat, method, number) for number in range(method.runs)]
    except SgdInfluenceError as error:
        _say.warning("%s: %s gave nothing: %s: %s", repeat.folder, method.name, type(error).__name__, error)
        return None, MethodCost(failed=f"{type(error).__name__}: {error}")
    scores, read = parts[0].scores, [part.read_bytes for part in parts]
    if len(parts) > 1:
        scores = _mean([part.scores for part in parts])
        scores.save(repeat.folder / "scores" / f"{method.name}.h5", overwrite=True)
    auroc, average_precision = _detection(repeat, scores)
    return scores, MethodCost(
        seconds=sum(part.seconds for part in parts),
        read_bytes=None if None in read else sum(b for b in read if b is not None),
        auroc=auroc,
        average_precision=average_precision,
    )


def _ranked(repeat: Repeat, method: Method, number: int) -> _Ranked:
    """Scores of one run, which an average and its estimator alone have in common."""
    run = repeat.run(number)
    identity = {"method": method.identity, "runs": [run.about["final_state"]]}
    place = repeat.folder / "scores" / (f"{method.of}_run_{number}.h5" if number else f"{method.of}.h5")

    def holds(known: Json) -> bool:
        return known["identity"] == identity and place.is_file()

    def made() -> Json:
        if place.is_file():
            _say.warning("%s: scores of %s were of another definition or run", run.folder, method.of)
        return {**_scored(repeat, method, run, place), "identity": identity}

    about = found_or_made(place.with_suffix(".json"), made, holds=holds)
    return _Ranked(scores=Scores.load(place), seconds=about["seconds"], read_bytes=about["read_bytes"])


def _scored(repeat: Repeat, method: Method, run: RecordedRun, place: Path) -> dict[str, Json]:
    _say.info("%s: scores of %s", run.folder, method.of)
    runner = repeat.parts.runner()
    with run.log() as log:
        read = read_bytes(method.estimator, log, run.about["state_bytes"])
    began = perf_counter()
    scores = runner.run(
        repeat.new_model(),
        run.train_loader(),
        repeat.loader(repeat.scoring),
        log=run.path,
        query=repeat.parts.query,
        estimator=method.estimator,
    )
    seconds = perf_counter() - began
    scores.save(place, overwrite=True)
    return {"seconds": seconds, "read_bytes": read}


def _mean(parts: Sequence[Scores]) -> Scores:
    values = torch.stack([scores.values for scores in parts]).mean(0)
    note = {"mean_of": [scores.provenance.get("log") for scores in parts]}
    return replace(
        parts[0], values=values, per_epoch=None, certificate=None, provenance={**parts[0].provenance, **note}
    )


def read_bytes(estimator: Any, log: RunLog, state_bytes: int) -> int | None:
    """Bytes of recorded states that a method reads, uncompressed: what must be kept for it.

    Args:
        estimator: Or baseline, which asks the final state at most unless it says otherwise.
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


def _detection(repeat: Repeat, scores: Scores) -> tuple[float | None, float | None]:
    """AUROC and average precision of finding the wrong labels, if any are known."""
    flipped = repeat.data.flipped
    if flipped is None or not flipped.any() or flipped.all():
        return None, None
    found = detect(scores.harm(), flipped.nonzero().flatten().tolist())
    return found.auroc, found.average_precision
