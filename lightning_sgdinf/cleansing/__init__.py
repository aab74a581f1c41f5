"""Strategies: scores in, a selection out."""

from lightning_sgdinf.cleansing.attempts import SkippedCountWarning as SkippedCountWarning
from lightning_sgdinf.cleansing.attempts import unless_diverged as unless_diverged
from lightning_sgdinf.cleansing.base import CleansingContext as CleansingContext
from lightning_sgdinf.cleansing.base import CleansingStrategy as CleansingStrategy
from lightning_sgdinf.cleansing.combined import combined as combined
from lightning_sgdinf.cleansing.curve import cleansing_curve as cleansing_curve
from lightning_sgdinf.cleansing.curve import random_ranking as random_ranking
from lightning_sgdinf.cleansing.evaluate import Evaluation as Evaluation
from lightning_sgdinf.cleansing.evaluate import LogitsAndLabels as LogitsAndLabels
from lightning_sgdinf.cleansing.evaluate import ModelPredictions as ModelPredictions
from lightning_sgdinf.cleansing.evaluate import StateEvaluation as StateEvaluation
from lightning_sgdinf.cleansing.evaluate import evaluate_classifier as evaluate_classifier
from lightning_sgdinf.cleansing.evaluate import held_out_value as held_out_value
from lightning_sgdinf.cleansing.evaluate import logits_and_labels as logits_and_labels
from lightning_sgdinf.cleansing.grid import default_grid as default_grid
from lightning_sgdinf.cleansing.infeasible import InfeasibleWarning as InfeasibleWarning
from lightning_sgdinf.cleansing.infeasible import OnExcess as OnExcess
from lightning_sgdinf.cleansing.infeasible import lost_classes as lost_classes
from lightning_sgdinf.cleansing.iterated import IteratedMargins as IteratedMargins
from lightning_sgdinf.cleansing.iterated import SearchResult as SearchResult
from lightning_sgdinf.cleansing.negative import Negative as Negative
from lightning_sgdinf.cleansing.relabel import Relabel as Relabel
from lightning_sgdinf.cleansing.reliability import Reliability as Reliability
from lightning_sgdinf.cleansing.reliability import StrategyOutcome as StrategyOutcome
from lightning_sgdinf.cleansing.reliability import choose_by_each as choose_by_each
from lightning_sgdinf.cleansing.reliability import measure_reliability as measure_reliability
from lightning_sgdinf.cleansing.retraining import CounterfactualRetraining as CounterfactualRetraining
from lightning_sgdinf.cleansing.retraining import ScratchRetraining as ScratchRetraining
from lightning_sgdinf.cleansing.retraining_cache import RetrainingCache as RetrainingCache
from lightning_sgdinf.cleansing.stable import Stable as Stable
from lightning_sgdinf.cleansing.top_fraction import TopFraction as TopFraction
from lightning_sgdinf.cleansing.top_k import TopK as TopK
from lightning_sgdinf.cleansing.validated import Validated as Validated
from lightning_sgdinf.renamed import renamed
from lightning_sgdinf.selection import Selection as Selection
from lightning_sgdinf.selection import Trial as Trial
from lightning_sgdinf.validation_data import Halves as Halves
from lightning_sgdinf.validation_data import halve as halve

__getattr__ = renamed(
    __name__,
    {
        "Chosen": "lightning_sgdinf.cleansing.StrategyOutcome",
        "ExcessWarning": "lightning_sgdinf.cleansing.InfeasibleWarning",
        "how_reliable": "lightning_sgdinf.cleansing.measure_reliability",
        "Outcomes": "lightning_sgdinf.cleansing.RetrainingCache",
        "Retrained": "lightning_sgdinf.updates.Updated",
        **{
            name: f"lightning_sgdinf.updates.{name}"
            for name in (
                *("ReducedDataset", "RelabelledDataset", "Retraining", "cleansed_dataset", "replace_label"),
                *("load_state", "state_of", "with_state"),
            )
        },
    },
)
