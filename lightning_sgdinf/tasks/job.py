"""The former place of the interface of jobs."""

from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "Job": "lightning_sgdinf.studies.Job",
        "Parts": "lightning_sgdinf.studies.Parts",
        "OF_THE_MAIN_JOB": "lightning_sgdinf.studies.PIPELINE_GROUPS",
    },
)
