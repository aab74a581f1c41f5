"""A page on repair: causes and treatments in two tables, held-out failures with what became of them, supposed causes.

Needs the ``report`` extra (matplotlib).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape

from lightning_sgdinf.report import fragments
from lightning_sgdinf.report.example import Example
from lightning_sgdinf.report.merged import Bars, Sheet, dots
from lightning_sgdinf.report.style import to_png, to_svg
from lightning_sgdinf.report.tables import Table

ONE_LINE = "td { white-space: nowrap; }"


@dataclass(frozen=True, kw_only=True, eq=False)
class FailureRow:
    """A held-out failure.

    Attributes:
        number: Its id in the validation set.
        example: It, with its label.
        answers: Answers of the treated models, by cause and treatment.
    """

    number: int
    example: Example
    answers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairPage:
    """Everything the page shows; what is empty is left out.

    Attributes:
        title: Head of the page.
        about: A sentence on what was wrong.
        tables: The main one first.
        losses: Test losses by cause and treatment, one per seed, for the figure.
        failures: Held-out failures, and what became of them.
        causes: Examples that each cause selected, with their ids.
    """

    title: str
    about: str
    tables: tuple[Table, ...] = ()
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    failures: tuple[FailureRow, ...] = ()
    causes: Mapping[str, tuple[tuple[int, Example], ...]] = field(default_factory=dict)

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """The supposed causes, for dashboards."""
        return (Sheet(title=self.about, rows=self.causes),) if self.causes else ()

    @cached_property
    def figure(self) -> tuple[str, bytes] | None:
        """Test losses, every seed a dot, as SVG and PNG; ``None`` without any."""
        if not self.losses:
            return None
        figure = dots(Bars(metric="test loss", values=self.losses))
        return to_svg(figure), to_png(figure)

    @cached_property
    def page(self) -> str:
        """The whole page, one file that needs no network."""
        heads = {"repair": "Causes and treatments", "causes": "How well causes are found"}
        sections = [fragments.section(t.name, heads.get(t.name, t.name), _table(t)) for t in self.tables]
        if self.figure is not None:
            drawn = fragments.chart(self.figure[0], "Lower is better; dots are seeds, bars their mean.", "Test losses")
            sections.insert(1, fragments.section("losses", "Test loss", drawn))
        if self.failures:
            shown = "".join(_failure(row) for row in self.failures)
            sections.append(fragments.section("failures", "Held-out failures, and what became of them", shown))
        for number, (cause, examples) in enumerate(self.causes.items()):
            tiles = fragments.tiles(fragments.tile(example, name=f"#{j}") for j, example in examples)
            sections.append(fragments.section(f"cause-{number}", f"Blamed by {cause}", tiles))
        head = f'<header><h1>{escape(self.title)}</h1><p class="about">{escape(self.about)}</p></header>'
        body = f"{head}\n<main>{''.join(sections)}</main>\n"
        return fragments.document(self.title, body, style=f"{fragments.resource('page.css')}\n{ONE_LINE}")


def _table(content: Table) -> str:
    """Return a table whose rows are one line each, with what was refused, which is long, behind a line below it."""
    if content.columns[-1] != "refused":
        return fragments.table(content)
    shown = replace(content, columns=content.columns[:-1], rows=tuple(row[:-1] for row in content.rows))
    width = content.columns.index("treatment") + 1 if "treatment" in content.columns else 1
    refused = {", ".join(map(str, row[:width])): str(row[-1]) for row in content.rows if row[-1]}
    if not refused:
        return fragments.table(shown)
    return fragments.table(shown) + fragments.folded(f"{len(refused)} refused", fragments.pairs(refused))


def _failure(row: FailureRow) -> str:
    tile = fragments.tiles([fragments.tile(row.example, name=f"validation #{row.number}")])
    right = [name for name, answer in row.answers.items() if answer == row.example.label]
    others: dict[str, list[str]] = {}
    for name, answer in row.answers.items():
        if answer != row.example.label:
            others.setdefault(answer, []).append(name)
    said = {"right now": "; ".join(right) or "none"} | {f"called {a}": "; ".join(n) for a, n in others.items()}
    return tile + fragments.folded(
        f"{len(right)} of {len(row.answers)} treated models get it right", fragments.pairs(said)
    )
