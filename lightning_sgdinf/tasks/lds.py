"""The former place of `lightning_sgdinf.studies.LdsJob`."""

from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(__name__, {"LdsJob": "lightning_sgdinf.studies.LdsJob"})
