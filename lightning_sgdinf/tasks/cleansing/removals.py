"""Training again without some examples, once for each set of them and each way, kept on disk."""

from __future__ import annotations

import base64
import logging
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
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.tasks.cleansing.repeat import SEEDS_APART, RecordedRun, Repeat
from lightning_sgdinf.tasks.pieces import Json, digest, found_or_made
from lightning_sgdinf.tasks.results import Measured
from lightning_sgdinf.tasks.retraining import Counterfactual, EndedRun, RetrainingPlan
from lightning_sgdinf.updates import Retraining, load_state

_say = logging.getLogger(__name__)
NEW_SEED = 500 * SEEDS_APART
"""What is added to a repeat's seed for training from scratch: none of its recorded runs has that one."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way to train again.

    Attributes:
        name: Its name in tables.
        plan: Makes it for a run.
        identity: Tells it from another of the same name: its configuration.
    """

    name: str
    plan: RetrainingPlan
    identity: Json


class Removals:
    """Trains a repeat's run again; nothing is opened before something has to be trained.

    Args:
        repeat: The split.
        run: The run that is judged.
        choose_by: Which held-out value a choice looks at.

    Attributes:
        trained: How many times it trained.
        known: How many pieces were there already.
    """

    def __init__(self, repeat: Repeat, run: RecordedRun, choose_by: Literal["loss", "error"]) -> None:
        self._repeat, self._run, self._choose_by = repeat, run, choose_by
        self._open = ExitStack()
        self._ended: EndedRun | None = None
        self._retrainings: dict[str, Retraining] = {}
        self._pieces: dict[Path, Mapping[str, Json]] = {}
        self.trained = self.known = 0

    def __enter__(self) -> Removals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def outcome(self, mode: Mode, selection: Selection) -> Measured:
        """Test error and the rest after training again with a selection; equal ones are trained once.

        Args:
            mode: How to train.
            selection: What to leave out and relabel, in any order.
        """
        about = self._piece(mode, selection)
        return Measured(
            test_error=about["test"]["error"],
            test_loss=about["test"]["loss"],
            chosen_by=about["choosing"][self._choose_by],
            seconds=about["seconds"],
        )

    def held_out_value(self, mode: Mode) -> Callable[[Selection], float]:
        """What a strategy may ask: the loss or error on the choosing examples after training again with a selection."""
        return lambda selection: self._piece(mode, selection)["choosing"][self._choose_by]

    def held_out_values(self, mode: Mode) -> Callable[[Selection], Tensor]:
        """The same of each of these examples."""
        name, dtype = {"loss": ("losses", np.float32), "error": ("wrong", np.bool_)}[self._choose_by]

        def values(selection: Selection) -> Tensor:
            packed = base64.b64decode(self._piece(mode, selection)["each"][name])
            return torch.from_numpy(np.frombuffer(packed, dtype).copy())

        return values

    def predictions(self) -> ModelPredictions:
        """The trained model's classes of training examples."""
        model = self._repeat.new_model()
        load_state(model, self._run.final_state())
        return ModelPredictions(model, self._repeat.data.train_set.unaugmented())

    def _piece(self, mode: Mode, selection: Selection) -> Mapping[str, Json]:
        relabel = sorted(selection.relabel.items())
        name = digest(self._run.about["final_state"], mode.identity, sorted(selection.drop), relabel)
        place = self._repeat.folder / "retrained" / mode.name / f"{len(selection):05d}_{name}.json"
        if place not in self._pieces:
            before = self.trained
            self._pieces[place] = found_or_made(place, lambda: self._train(mode, selection))
            self.known += self.trained == before
        return self._pieces[place]

    def _train(self, mode: Mode, selection: Selection) -> dict[str, Json]:
        self.trained += 1
        repeat, count = self._repeat, len(selection)
        if lost := lost_classes(repeat.data.train_set.labels, selection.drop, dict(selection.relabel)):
            names = ", ".join(repeat.data.class_names[label] for label in lost)
            _say.warning("%s: with these %d examples changed nothing is left of %s", repeat.folder, count, names)
        retraining = self._retraining(mode)
        if not count and isinstance(mode.plan, Counterfactual):
            return self._measured(self._run.final_state(), 0, None)  # nothing left out: the recorded run itself
        _say.info("%s: training again (%s) with %d examples left out", repeat.folder, mode.name, count)
        with random_state.preserved():
            outcome = retraining(selection)
        return self._measured(outcome.state, count, outcome.seconds)

    def _measured(self, state: ModelState, count: int, seconds: float | None) -> dict[str, Json]:
        found = {name: measure(state) for name, measure in self._measures.items()}
        each = found["choosing"]
        return {
            "count": count,
            "seconds": seconds,
            **{name: {"loss": of.loss, "error": of.error} for name, of in found.items()},
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

    def _retraining(self, mode: Mode) -> Retraining:
        if self._ended is None:
            run = self._open.enter_context(self._run.opened())
            repeat, seed = self._repeat, self._repeat.seed + NEW_SEED
            self._ended = EndedRun(
                run=run,
                dataset=repeat.data.train_set,
                fit=lambda dataset: repeat.fit(dataset, seed),
            )
        if mode.name not in self._retrainings:
            self._retrainings[mode.name] = mode.plan.prepare(self._ended)
        return self._retrainings[mode.name]
