"""The experiment of the papers: does removing the examples that a method finds most harmful make the model better?"""

from lightning_sgdinf.studies.cleansing.job import CleansingJob as CleansingJob
