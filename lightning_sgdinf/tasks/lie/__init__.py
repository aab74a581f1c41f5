"""The study of linear influence estimates: how well they agree with what leaving an example out really does."""

from lightning_sgdinf.tasks.lie.job import LieJob as LieJob
