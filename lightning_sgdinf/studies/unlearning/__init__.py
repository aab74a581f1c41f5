"""Unlearning: methods on one recorded run, each judged by the exact run without the set."""

from lightning_sgdinf.studies.unlearning.job import UnlearningJob as UnlearningJob
from lightning_sgdinf.studies.unlearning.requests import ChangedLabels as ChangedLabels
from lightning_sgdinf.studies.unlearning.requests import ForgetBackdoor as ForgetBackdoor
from lightning_sgdinf.studies.unlearning.requests import ForgetClass as ForgetClass
from lightning_sgdinf.studies.unlearning.requests import ForgetRandom as ForgetRandom
