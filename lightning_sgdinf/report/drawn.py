"""A report drawn once, for all that show or keep it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from lightning_sgdinf.random_state import preserved
from lightning_sgdinf.report.extremes import Extremes, collect_extremes
from lightning_sgdinf.report.figures import all_figures, contact_sheets
from lightning_sgdinf.report.model import ReportData
from lightning_sgdinf.report.page import render_page
from lightning_sgdinf.report.style import to_png, to_svg
from lightning_sgdinf.report.tables import Table, all_examples_table, all_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DrawnReport:
    """A report whose page, figures and tables are each made once, when they are first asked for.

    Args:
        data: The report.
    """

    def __init__(self, data: ReportData) -> None:
        self.data = data

    @cached_property
    def _figures(self) -> Mapping[str, Figure]:
        with preserved():  # data sets may draw from global generators when they are looked at
            return all_figures(self.data)

    @cached_property
    def charts(self) -> Mapping[str, str]:
        """SVG of every figure of the page, by name."""
        return {name: to_svg(figure) for name, figure in self._figures.items()}

    @cached_property
    def pictures(self) -> Mapping[str, bytes]:
        """PNG of every figure and contact sheet, by name."""
        _ = self.charts  # matplotlib lays out anew each time it saves: in one order, the bytes are always the same
        with preserved():
            return {name: to_png(figure) for name, figure in {**self._figures, **contact_sheets(self.data)}.items()}

    @cached_property
    def page(self) -> str:
        """The whole page, HTML."""
        return render_page(self.data, self.charts)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Every table that has rows."""
        return all_tables(self.data)

    def all_examples(self, most: int) -> Table:
        """Return every training example with its scores as one table, of ``most`` rows at most."""
        with preserved():
            return all_examples_table(self.data, most=most)

    @cached_property
    def extremes(self) -> Extremes:
        """Both ends of the ranking as one table."""
        return collect_extremes(self.data)

    @property
    def tables_beside_extremes(self) -> tuple[Table, ...]:
        """The tables whose rows are not in that of `extremes`."""
        return tuple(table for table in self.tables if table.name not in ("most-harmful", "most-helpful"))
