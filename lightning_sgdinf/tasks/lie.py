"""The former place of `lightning_sgdinf.studies.AgreementJob`."""

from lightning_sgdinf.renamed import renamed

__getattr__ = renamed(__name__, {"LieJob": "lightning_sgdinf.studies.AgreementJob"})
