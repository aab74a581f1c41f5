"""The main job: train with the recorder on, rank the training examples, cleanse, train again, report."""

from lightning_sgdinf.studies.pipeline.parts import MainParts as MainParts
from lightning_sgdinf.studies.pipeline.parts import PipelineParts as PipelineParts
from lightning_sgdinf.studies.pipeline.parts import ReportSettings as ReportSettings
from lightning_sgdinf.studies.pipeline.run import run_pipeline as run_pipeline
from lightning_sgdinf.studies.pipeline.stages import PipelineResult as PipelineResult
