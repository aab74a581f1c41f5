"""Pages, figures and tables of results, for people and for loggers.

Needs the ``report`` extra (matplotlib); `log_report` to Weights & Biases also needs the ``wandb`` extra, to TensorBoard
the ``tensorboard`` extra.
"""

from lightning_sgdinf.report.brief import said_first as said_first
from lightning_sgdinf.report.drawn import DrawnReport as DrawnReport
from lightning_sgdinf.report.example import Example as Example
from lightning_sgdinf.report.example import SafeHtml as SafeHtml
from lightning_sgdinf.report.merged import Bars as Bars
from lightning_sgdinf.report.merged import Merged as Merged
from lightning_sgdinf.report.merged import Panel as Panel
from lightning_sgdinf.report.merged import Sheet as Sheet
from lightning_sgdinf.report.model import BeforeAfter as BeforeAfter
from lightning_sgdinf.report.model import Cost as Cost
from lightning_sgdinf.report.model import Explanation as Explanation
from lightning_sgdinf.report.model import ReportData as ReportData
from lightning_sgdinf.report.rendering import Rendered as Rendered
from lightning_sgdinf.report.rendering import Renderer as Renderer
from lightning_sgdinf.report.rendering import as_example as as_example
from lightning_sgdinf.report.scatter import save_scatter as save_scatter
from lightning_sgdinf.report.sinks import log_merged as log_merged
from lightning_sgdinf.report.sinks import log_report as log_report
from lightning_sgdinf.report.sinks import publish_report as publish_report
from lightning_sgdinf.report.sinks import write_merged as write_merged
from lightning_sgdinf.report.sinks import write_page as write_page
from lightning_sgdinf.report.sinks import write_report as write_report
from lightning_sgdinf.report.tables import Cell as Cell
from lightning_sgdinf.report.tables import Table as Table
from lightning_sgdinf.report.wandb_sink import finish_run as finish_run
