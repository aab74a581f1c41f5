"""The main job for a LightningModule and a data module of the caller's: train with the recorder on, rank, cleanse,
measure, report."""

from lightning_sgdinf.studies.module_run.parts import IGNORED_GROUPS as IGNORED_GROUPS
from lightning_sgdinf.studies.module_run.parts import ModuleParts as ModuleParts
from lightning_sgdinf.studies.module_run.parts import is_data_module as is_data_module
from lightning_sgdinf.studies.module_run.parts import is_lightning_module as is_lightning_module
from lightning_sgdinf.studies.module_run.run import ModuleResult as ModuleResult
from lightning_sgdinf.studies.module_run.run import row_of as row_of
from lightning_sgdinf.studies.module_run.run import run_module as run_module
