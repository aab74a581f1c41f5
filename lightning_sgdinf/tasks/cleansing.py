"""The former place of `lightning_sgdinf.studies.CleansingJob`."""

from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(__name__, {"CleansingJob": "lightning_sgdinf.studies.CleansingJob"})
