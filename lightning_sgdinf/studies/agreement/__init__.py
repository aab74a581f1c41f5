"""The study of how well influence estimates agree with the measured effect of leaving an example out."""

from lightning_sgdinf.studies.agreement.job import AgreementJob as AgreementJob
