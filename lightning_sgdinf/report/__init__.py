"""How results look: one page, its figures and tables, and the same for loggers.

Needs the ``cli`` extra (matplotlib); `log_report` to Weights & Biases also needs the ``wandb`` extra.
"""

from lightning_sgdinf.report.model import BeforeAfter as BeforeAfter
from lightning_sgdinf.report.model import Cost as Cost
from lightning_sgdinf.report.model import Example as Example
from lightning_sgdinf.report.model import Explanation as Explanation
from lightning_sgdinf.report.model import ReportData as ReportData
from lightning_sgdinf.report.sinks import log_report as log_report
from lightning_sgdinf.report.sinks import write_page as write_page
from lightning_sgdinf.report.sinks import write_report as write_report
