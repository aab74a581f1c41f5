"""The experiment of the papers: does removing what a method points at make the model better?"""

from lightning_sgdinf.tasks.cleansing.job import CleansingJob as CleansingJob
