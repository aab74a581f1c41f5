"""Measures of a ranking, and of a cleansing by it."""

from lightning_sgdinf.evaluation.agreement import Agreement as Agreement
from lightning_sgdinf.evaluation.agreement import jaccard_of_extremes as jaccard_of_extremes
from lightning_sgdinf.evaluation.agreement import kendall_tau as kendall_tau
from lightning_sgdinf.evaluation.agreement import measure_agreement as measure_agreement
from lightning_sgdinf.evaluation.agreement import pearson as pearson
from lightning_sgdinf.evaluation.agreement import spearman as spearman
from lightning_sgdinf.evaluation.curves import CleansingCurve as CleansingCurve
from lightning_sgdinf.evaluation.datamodelling import DatamodellingScore as DatamodellingScore
from lightning_sgdinf.evaluation.datamodelling import datamodelling_score as datamodelling_score
from lightning_sgdinf.evaluation.datamodelling import random_subsets as random_subsets
from lightning_sgdinf.evaluation.detection import Detection as Detection
from lightning_sgdinf.evaluation.detection import detect as detect
from lightning_sgdinf.evaluation.refinement import RefinementPoint as RefinementPoint
from lightning_sgdinf.evaluation.refinement import refinement_curve as refinement_curve
from lightning_sgdinf.evaluation.removals import Removal as Removal
from lightning_sgdinf.evaluation.removals import compare_removals as compare_removals
from lightning_sgdinf.evaluation.significance import Comparison as Comparison
from lightning_sgdinf.evaluation.significance import holm as holm
from lightning_sgdinf.evaluation.significance import paired_t_test as paired_t_test
from lightning_sgdinf.evaluation.significance import sign_flip_test as sign_flip_test
from lightning_sgdinf.evaluation.significance import unpaired_t_test as unpaired_t_test
from lightning_sgdinf.evaluation.significance import wilcoxon_test as wilcoxon_test
