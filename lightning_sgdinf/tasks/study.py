"""The former place of `lightning_sgdinf.studies.ReportSettings`."""

from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(__name__, {"ReportSettings": "lightning_sgdinf.studies.ReportSettings"})
