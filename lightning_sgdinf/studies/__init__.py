"""The experiments as plain Python, one folder each; `lightning_sgdinf.tasks` runs them from the command line."""

from lightning_sgdinf.studies.agreement import AgreementJob as AgreementJob
from lightning_sgdinf.studies.cache import load_or_compute as load_or_compute
from lightning_sgdinf.studies.cache import pin_settings as pin_settings
from lightning_sgdinf.studies.cleansing import CleansingJob as CleansingJob
from lightning_sgdinf.studies.job import PIPELINE_GROUPS as PIPELINE_GROUPS
from lightning_sgdinf.studies.job import Job as Job
from lightning_sgdinf.studies.job import Parts as Parts
from lightning_sgdinf.studies.lds import LdsJob as LdsJob
from lightning_sgdinf.studies.merged import merge as merge
from lightning_sgdinf.studies.pipeline import PipelineParts as PipelineParts
from lightning_sgdinf.studies.pipeline import PipelineResult as PipelineResult
from lightning_sgdinf.studies.pipeline import ReportSettings as ReportSettings
from lightning_sgdinf.studies.pipeline import run_pipeline as run_pipeline
from lightning_sgdinf.studies.recorded_run import StoredRun as StoredRun
from lightning_sgdinf.studies.recorded_run import TrainedRun as TrainedRun
from lightning_sgdinf.studies.recorded_run import Training as Training
from lightning_sgdinf.studies.results import RunResults as RunResults
from lightning_sgdinf.studies.retraining import Scratch as Scratch
from lightning_sgdinf.studies.sisa import SisaJob as SisaJob
from lightning_sgdinf.studies.unlearning import ChangedLabels as ChangedLabels
from lightning_sgdinf.studies.unlearning import ForgetBackdoor as ForgetBackdoor
from lightning_sgdinf.studies.unlearning import ForgetClass as ForgetClass
from lightning_sgdinf.studies.unlearning import ForgetRandom as ForgetRandom
from lightning_sgdinf.studies.unlearning import UnlearningJob as UnlearningJob
