"""Scoring as a part of training: record a fit, and when it is done replay it and log the ranking."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.arguments import path_of, require_instance, whole_number
from lightning_sgdinf.baselines import Baseline
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.estimators import DirectEstimator, Estimator
from lightning_sgdinf.extras import require
from lightning_sgdinf.plain_text import printable
from lightning_sgdinf.query import Query, require_query
from lightning_sgdinf.record import TrajectoryRecorder
from lightning_sgdinf.replay.recorded_state import RecordedState
from lightning_sgdinf.runner import InfluenceRunner
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.scoring import require_method


class ScoreOnFitEnd(Callback):
    """Records a fit; when it has completed, replays it, logs the ranking of the training examples and writes it down.

    ::

        trainer = Trainer(max_epochs=20, logger=WandbLogger(), callbacks=[ScoreOnFitEnd("runs/mnist.tlog")])
        trainer.fit(model, datamodule=dm)

    The Trainer's loggers get what `Scores.log_to` gives them. Beside the log ``runs/mnist.tlog``, ``runs/mnist.report``
    gets the page ``report.html``, figures and CSV tables, and ``scores.h5`` for `Scores.load`.

    The trained model and the random generators are afterwards as they were. A fit that was interrupted is not scored;
    its record stays. If the replay is refused or fails, that is a warning and `failure` says why: the trained model is
    not lost with it. In runs of several processes the first one scores.

    Args:
        path: Where to record, as for `TrajectoryRecorder`; ``None`` if the Trainer has a recorder, or one is given.
        recorder: Records the fit, in place of one made for ``path``.
        query: A query of the trained model; its mean validation loss if ``None``.
        estimator: Estimates the scores; the exact derivative of the run if ``None``.
        runner: Replays; if ``None``, one that computes where the fit did, with the fast certificate and each epoch's
            contributions.
        shown: Examples to show of each end of the ranking, at least 1.
        show: Called with an item of the training set, makes the `lightning_sgdinf.report.Example` to show of it; if
            ``None``, pictures, texts and rows are told by their form.
        at: Score another state than the last, as for `InfluenceRunner.run`: ``"best"`` for the model that
            ``ModelCheckpoint(monitor=...)`` kept.

    Raises:
        ConfigurationError: Both a path and a recorder, less than one example to show, or a class or name in place of
            an estimator, a query, a runner or a recorder.

    Attributes:
        scores: Of the last fit; ``None`` before, and if it was not scored.
        failure: The reason why the last fit was not scored; ``None`` if it was.
        report: The page of the last fit, if one was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        recorder: TrajectoryRecorder | None = None,
        query: Query | None = None,
        estimator: Estimator | DirectEstimator | Baseline | None = None,
        runner: InfluenceRunner | None = None,
        shown: int = 24,
        show: Callable[[Any], Any] | None = None,
        at: RecordedState | None = None,
    ) -> None:
        if path is not None and recorder is not None:
            raise ConfigurationError(f"expected a path or a recorder, got {path} and a recorder of {recorder.path}")
        if estimator is not None:
            require_method(estimator)
        if query is not None:
            require_query(query)
        if runner is not None:
            require_instance(runner, "runner", ("run",), ("InfluenceRunner",))
        if recorder is not None:
            require_instance(recorder, "recorder", ("on_train_start",), ("TrajectoryRecorder",))
        self._given = TrajectoryRecorder(path_of(path)) if path is not None else recorder
        self._recorder: TrajectoryRecorder | None = None
        self._query, self._estimator, self._runner = query, estimator, runner
        self._shown, self._show = whole_number(shown, "shown", least=1), show
        self._at = at
        self._completed = False
        self.scores: Scores | None = None
        self.failure: str | None = None
        self.report: Path | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make sure that the coming fit is recorded and can be scored.

        Raises:
            ConfigurationError: There is no recorder, or several to choose from, or no validation data for the query.
        """
        if stage != "fit":
            return
        self.scores = self.failure = self.report = self._recorder = None
        self._completed = False
        recorders = [c for c in trainer.callbacks if isinstance(c, TrajectoryRecorder)]
        if self._given is None and len(recorders) != 1:
            raise ConfigurationError(
                f"ScoreOnFitEnd: expected one TrajectoryRecorder among the Trainer's callbacks, got {len(recorders)}; "
                "give ScoreOnFitEnd a path or the recorder to use"
            )
        if not isinstance(self._estimator, Baseline) and not _validation_source(trainer).is_defined():
            raise ConfigurationError(
                "ScoreOnFitEnd: no validation data to ask the trained model about; pass val_dataloaders to fit"
            )
        number = None if self._runner is None else self._runner.settings.val_loader
        if not isinstance(self._estimator, Baseline) and number is None and _several(_validation_source(trainer)):
            raise ConfigurationError(
                "ScoreOnFitEnd: there are several validation loaders; say which one to ask about: "
                "runner=InfluenceRunner(val_loader=0)"
            )
        self._recorder = self._given or recorders[0]
        if self._given is not None and all(callback is not self._given for callback in trainer.callbacks):
            # A new list: the Trainer is going through the present one, so the recorder is set up here.
            place = trainer.callbacks.index(self)
            trainer.callbacks = [*trainer.callbacks[:place], self._given, *trainer.callbacks[place:]]
            self._given.setup(trainer, pl_module, stage)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say that nothing is scored, and how to go on with the record."""
        if self._recorder is None or self.scores is not None:
            return
        by_hand = f"InfluenceRunner().run(model, ..., log={str(self._recorder.path)!r})"
        if self._completed:
            self.failure = f"the replay was interrupted ({type(exception).__name__})"
            rank_zero_info(f"ScoreOnFitEnd: {self.failure}; the record is complete and can be scored with {by_hand}.")
            return
        self.failure = f"the fit was interrupted ({type(exception).__name__})"
        rank_zero_info(
            f"ScoreOnFitEnd: {self.failure}, so nothing is scored. What was recorded, if anything, is in "
            f"{self._recorder.path}: go on with fit(..., ckpt_path=...), which is scored when it has completed, or "
            f"score the steps so far with {by_hand}."
        )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Replay the fit, log its ranking and write it down."""
        recorder = self._recorder
        if recorder is None or not trainer.is_global_zero:
            return
        self._completed = True
        if not recorder.recorded:
            self.failure = "nothing was recorded"
            rank_zero_info(f"ScoreOnFitEnd: {self.failure} (fast_dev_run, or no step was taken), so nothing is scored.")
            return
        try:
            with random_state.preserved(), torch.enable_grad():
                self.scores = self._score(trainer, pl_module, recorder)
                self._tell(trainer, pl_module, recorder, self.scores)
        except Exception as error:  # of whatever code of the user's: training is done, and shall not be lost with it
            self.failure = f"{type(error).__name__}: {error}"
            done = "the fit is not scored" if self.scores is None else "the scores (.scores) are not reported"
            rank_zero_warn(printable(f"ScoreOnFitEnd: {done}. {self.failure}"))

    def _score(self, trainer: Any, module: Any, recorder: TrajectoryRecorder) -> Scores:
        runner = self._runner or InfluenceRunner(
            accelerator=trainer.strategy.root_device.type,
            per_epoch=True,
            progress=trainer.progress_bar_callback is not None,
        )
        loaders = None if _is_stream(recorder.loaders) else list(recorder.loaders)
        arguments: dict[str, Any] = {"log": recorder.path, "query": self._query, "estimator": self._estimator}
        arguments |= {"at": self._at}
        return runner.run(module, loaders, _validation_loaders(trainer), **arguments)

    def _tell(self, trainer: Any, module: Any, recorder: TrajectoryRecorder, scores: Scores) -> None:
        folder = recorder.path.with_suffix(".report")
        folder.mkdir(parents=True, exist_ok=True)
        scores.save(folder / "scores.h5", overwrite=True)
        report = require("lightning_sgdinf.report", extra="report")
        title = f"Training examples that helped and harmed: {type(module).__name__}"
        data = report.ReportData(
            title=title, scores=scores, shown=self._shown, examples=self._examples(module, recorder, scores)
        )
        self.report = report.publish_report(data, folder, trainer.loggers, log=recorder.path)
        rank_zero_info(printable(f"ScoreOnFitEnd: {' '.join(report.said_first(data))} Report: {self.report}"))

    def _examples(self, module: nn.Module, recorder: TrajectoryRecorder, scores: Scores) -> dict[int, Any]:
        """Render the examples at both ends; none where the data set cannot be looked into."""
        loaders = recorder.loaders
        dataset: Any = getattr(loaders[0], "dataset", None) if len(loaders) == 1 else None
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or len(dataset) != len(scores):
            return {}
        rendered = require("lightning_sgdinf.report", extra="report").Rendered(dataset, self._show)
        wanted = {*scores.most_harmful(self._shown).example_ids, *scores.most_helpful(self._shown).example_ids}
        shown = {}
        for i in sorted(wanted):
            try:
                example = rendered[i]
            except ConfigurationError:
                if self._show is not None:
                    raise
                return {}  # items of a form that only their owner knows to show
            prediction = example.prediction or _predicted_class(module, dataset[i])
            shown[i] = replace(example, prediction=prediction)
        return shown


def _validation_source(trainer: Any) -> Any:
    """Return the Trainer's source of validation data; it offers no other way to ask before it is needed."""
    return trainer.fit_loop.epoch_loop.val_loop._data_source


def _several(source: Any) -> bool:
    """Tell if validation loaders that were given to the fit are more than one; what a hook will make is not known."""
    given = source.instance
    return isinstance(given, (list, tuple, dict)) and len(given) > 1


def _validation_loaders(trainer: Any) -> Any:
    """Return the validation loaders of the fit, those of all processes together."""
    source = _validation_source(trainer)
    if trainer.val_dataloaders is not None and trainer.world_size == 1:
        return trainer.val_dataloaders  # made already: a data module may split at random when it is asked again
    return source.dataloader() if source.is_defined() else None


def _is_stream(loaders: tuple[Any, ...]) -> bool:
    return any(not hasattr(getattr(loader, "dataset", None), "__len__") for loader in loaders)


def _predicted_class(module: nn.Module, item: Any) -> str:
    """Return the class that a classifier gives to a pair of a tensor and a whole number; empty for anything else."""
    if not (isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor)):
        return ""
    label = torch.as_tensor(item[1]) if isinstance(item[1], (int, Tensor)) else None
    if label is None or label.numel() != 1 or label.is_floating_point():
        return ""
    place = next(module.parameters(), None)
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            logits = module.eval()(item[0][None].to(None if place is None else place.device))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError):
        return ""  # its forward wants something else; there is no such thing as its prediction
    finally:
        for part, mode in modes:
            part.training = mode
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        return ""
    return str(int(logits.argmax()))
