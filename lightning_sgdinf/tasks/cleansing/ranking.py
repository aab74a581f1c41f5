"""Scores of one method on one repeat, kept on disk with what they took."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lightning_sgdinf.baselines import AreaUnderMargin, Baseline
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
        estimator: Or baseline.
        identity: Tells it from another of the same name: its configuration.
        runs: How many recorded runs on the same split its scores are the mean of, at least 1.
    """

    name: str
    estimator: Any
    identity: Json
    runs: int = 1


def rank(repeat: Repeat, method: Method) -> tuple[Scores | None, MethodCost]:
    """A method's scores, made unless they are there, and what they took.

    A method that raises one of this package's errors gives ``None`` and the reason; it is tried again the next time.
    """
    runs = [repeat.run(number) for number in range(method.runs)]
    identity = {"method": method.identity, "runs": [run.about["final_state"] for run in runs]}
    place = repeat.folder / "scores" / f"{method.name}.h5"

    def holds(known: Json) -> bool:
        if known["identity"] != identity:
            _say.warning(
                "%s: scores of %s were of %s; they are made anew", repeat.folder, method.name, known["identity"]
            )
        return known["identity"] == identity and place.is_file()

    try:
        about = found_or_made(
            place.with_suffix(".json"),
            lambda: {**_scored(repeat, method, runs, place), "identity": identity},
            holds=holds,
        )
    except SgdInfluenceError as error:
        _say.warning("%s: %s gave nothing: %s: %s", repeat.folder, method.name, type(error).__name__, error)
        return None, MethodCost(failed=f"{type(error).__name__}: {error}")
    scores = Scores.load(place)
    auroc, average_precision = _detection(repeat, scores)
    return scores, MethodCost(
        seconds=about["seconds"],
        read_bytes=about["read_bytes"],
        auroc=auroc,
        average_precision=average_precision,
    )


def _scored(repeat: Repeat, method: Method, runs: Sequence[RecordedRun], place: Path) -> dict[str, Json]:
    _say.info("%s: scores of %s", repeat.folder, method.name)
    runner = repeat.parts.runner()
    began = perf_counter()
    parts, read = [], []
    for run in runs:
        with run.log() as log:
            read.append(read_bytes(method.estimator, log, run.about["state_bytes"]))
        parts.append(
            runner.run(
                repeat.new_model(),
                run.train_loader(),
                repeat.loader(repeat.scoring),
                log=run.path,
                query=repeat.parts.query,
                estimator=method.estimator,
            )
        )
    seconds = perf_counter() - began
    _mean(parts).save(place, overwrite=True)
    return {"seconds": seconds, "read_bytes": None if None in read else sum(b for b in read if b is not None)}


def _mean(parts: Sequence[Scores]) -> Scores:
    if len(parts) == 1:
        return parts[0]
    values = torch.stack([scores.values for scores in parts]).mean(0)
    note = {"mean_of": [scores.provenance.get("log") for scores in parts]}
    return replace(
        parts[0], values=values, per_epoch=None, certificate=None, provenance={**parts[0].provenance, **note}
    )


def read_bytes(estimator: Any, log: RunLog, state_bytes: int) -> int | None:
    """Bytes of recorded states that a method reads, uncompressed: what must be kept for it.

    Args:
        estimator: Or baseline, of which all but one ask the final state at most.
        log: The record.
        state_bytes: Of one state.

    Returns:
        The bytes; ``None`` if the method does not say.
    """
    if isinstance(estimator, AreaUnderMargin):
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
