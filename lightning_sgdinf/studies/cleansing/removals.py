"""Training again without some examples, once for each set of them and each mode, cached on disk."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf import random_state
from lightning_sgdinf.cleansing import ModelPredictions, Selection, StateEvaluation, lost_classes
from lightning_sgdinf.plain_text import printable_logger
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.studies.cache import Json, digest, load_or_compute
from lightning_sgdinf.studies.cleansing.repeat import SEEDS_APART, Repeat
from lightning_sgdinf.studies.recorded_run import StoredRun
from lightning_sgdinf.studies.results import Measured
from lightning_sgdinf.studies.retraining import Retrain, model_update
from lightning_sgdinf.updates import CounterfactualReplay, Updated, load_state

logger = printable_logger(__name__)
NEW_SEED = 500 * SEEDS_APART
"""Added to a repeat's seed for training from scratch: none of its recorded runs has that one."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way to train again.

    Attributes:
        name: Its name in tables.
        retrain: As configured.
        identity: Tells it from another of the same name: its configuration.
    """

    name: str
    retrain: Retrain
    identity: Json


class Removals:
    """Trains a repeat's run again; nothing is opened before something has to be trained.

    Args:
        repeat: The split.
        run: The run that is judged.
        choose_by: The held-out value that a choice uses.

    Attributes:
        trained: Number of models trained.
        cached: Number of results that were on disk already.
    """

    def __init__(self, repeat: Repeat, run: StoredRun, choose_by: Literal["loss", "error"]) -> None:
        self._repeat, self._run, self._choose_by = repeat, run, choose_by
        self._open = ExitStack()
        self._opened: OpenedRun | None = None
        self._results: dict[Path, Mapping[str, Json]] = {}
        self.trained = self.cached = 0

    def __enter__(self) -> Removals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def outcome(self, mode: Mode, selection: Selection) -> Measured:
        """Return test error and the rest after training again with a selection; equal ones are trained once.

        Args:
            mode: How to train.
            selection: Examples to leave out and relabel, in any order.
        """
        about = self._result(mode, selection)
        return Measured(
            test_error=about["test"]["error"],
            test_loss=about["test"]["loss"],
            chosen_by=about["choosing"][self._choose_by],
            seconds=about["seconds"],
        )

    def held_out_value(self, mode: Mode) -> Callable[[Selection], float]:
        """Return the loss or error on the choosing examples after training again, as a function of the selection."""
        return lambda selection: self._result(mode, selection)["choosing"][self._choose_by]

    def held_out_values(self, mode: Mode) -> Callable[[Selection], Tensor]:
        """Return loss or error of each choosing example after training again, as a function of the selection."""
        name, dtype = {"loss": ("losses", np.float32), "error": ("wrong", np.bool_)}[self._choose_by]

        def values(selection: Selection) -> Tensor:
            packed = base64.b64decode(self._result(mode, selection)["each"][name])
            return torch.from_numpy(np.frombuffer(packed, dtype).copy())

        return values

    def predictions(self) -> ModelPredictions:
        """Return the trained model's classes of training examples."""
        model = self._repeat.new_model()
        load_state(model, self._run.final_state())
        return ModelPredictions(model, self._repeat.data.train_set.unaugmented())

    def _result(self, mode: Mode, selection: Selection) -> Mapping[str, Json]:
        relabel = sorted(selection.relabel.items())
        name = digest(self._run.about["final_state"], mode.identity, sorted(selection.drop), relabel)
        file = self._repeat.folder / "retrained" / mode.name / f"{len(selection):05d}_{name}.json"
        if file not in self._results:
            before = self.trained
            self._results[file] = load_or_compute(file, lambda: self._train(mode, selection))
            self.cached += self.trained == before
        return self._results[file]

    def _train(self, mode: Mode, selection: Selection) -> dict[str, Json]:
        self.trained += 1
        repeat, count = self._repeat, len(selection)
        if lost := lost_classes(repeat.data.train_set.labels, selection.drop, dict(selection.relabel)):
            names = ", ".join(repeat.data.class_names[label] for label in lost)
            logger.warning("%s: with these %d examples changed nothing is left of %s", repeat.folder, count, names)
        if not count and isinstance(mode.retrain, CounterfactualReplay):
            return self._measured(self._run.final_state(), 0, None)  # nothing left out: the recorded run itself
        logger.info("%s: training again (%s) with %d examples left out", repeat.folder, mode.name, count)
        with random_state.preserved():
            updated = self._update(mode, selection)
        return self._measured(updated.state, count, updated.seconds)

    def _measured(self, state: ModelState, count: int, seconds: float | None) -> dict[str, Json]:
        evaluations = {name: measure(state) for name, measure in self._measures.items()}
        each = evaluations["choosing"]
        return {
            "count": count,
            "seconds": seconds,
            **{name: {"loss": of.loss, "error": of.error} for name, of in evaluations.items()},
            "each": {
                "losses": base64.b64encode(each.losses.float().numpy().tobytes()).decode(),
                "wrong": base64.b64encode(each.wrong.numpy().tobytes()).decode(),
            },
        }

    @cached_property
    def _measures(self) -> dict[str, StateEvaluation]:
        repeat, model = self._repeat, self._repeat.new_model()
        sets = {"test": repeat.data.test_set, "choosing": repeat.choosing, "scoring": repeat.scoring}
        return {name: StateEvaluation(model, repeat.loader(dataset)) for name, dataset in sets.items()}

    def _update(self, mode: Mode, selection: Selection) -> Updated:
        if self._opened is None:
            self._opened = self._open.enter_context(self._repeat.opened(self._run))
        seed = self._repeat.seed + NEW_SEED
        update = model_update(mode.retrain, lambda dataset: self._repeat.fit(dataset, seed))
        return update.update(self._opened, selection)
