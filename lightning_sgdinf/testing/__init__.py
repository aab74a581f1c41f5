"""Oracles and suites by which an update rule, an estimator or a model update, one's own included, can be checked."""

from lightning_sgdinf.testing.estimator_suite import EstimatorSuite as EstimatorSuite
from lightning_sgdinf.testing.model_update_suite import ModelUpdateSuite as ModelUpdateSuite
from lightning_sgdinf.testing.oracles import Losses as Losses
from lightning_sgdinf.testing.oracles import UnrolledRun as UnrolledRun
from lightning_sgdinf.testing.oracles import UnrolledStep as UnrolledStep
from lightning_sgdinf.testing.oracles import central_differences as central_differences
from lightning_sgdinf.testing.oracles import relative_error as relative_error
from lightning_sgdinf.testing.oracles import unrolled_scores as unrolled_scores
from lightning_sgdinf.testing.oracles import unrolled_training as unrolled_training
from lightning_sgdinf.testing.runs import SmallRun as SmallRun
from lightning_sgdinf.testing.runs import small_run as small_run
from lightning_sgdinf.testing.update_rule_suite import UpdateRuleSuite as UpdateRuleSuite
