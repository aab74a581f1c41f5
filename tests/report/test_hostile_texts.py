"""Texts from data sets, in every place where they are written: page, pictures, tables, notebook, console, loggers."""

from __future__ import annotations

import csv
import io
import re
import traceback
import xml.etree.ElementTree
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import lightning_sgdinf
from lightning_sgdinf import errors
from lightning_sgdinf.plain_text import markdown_table, printable_logger
from lightning_sgdinf.record.diagnostics import Diagnostics
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.report import ReportData, fragments
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.report.sinks import _write
from lightning_sgdinf.report.tensorboard_sink import markdown
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies.console import Console, Table, plain
from tests.report.conftest import make_full, make_scores

HALF, NUL, ESCAPE, BIDI, ZERO_WIDTH = "\ud800", "\x00", "\x1b[2J\x1b]0;x\x07", "\u202eabc\u2066", "\u200b"
HOSTILE = (
    f"=1+1{HALF}{ESCAPE}{BIDI}{ZERO_WIDTH}\uffff\u2028[/] [link=http://x.example]y[/link] `|*$"
    "</script><!--<script></style></title><meta http-equiv=refresh content=0><base href=//x.example>"
    "<img src=x onerror=alert(1)>\"'><a href='javascript:alert(1)'>\r\n\t{}%s"
)
ACTIVE = {"meta", "base", "link", "iframe", "object", "embed", "form"}
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@dataclass(frozen=True)
class Written:
    """A report of hostile texts that was written."""

    data: ReportData
    drawn: DrawnReport
    folder: Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    scores = replace(make_scores(HOSTILE), queries=(f"loss {HOSTILE}", HOSTILE))
    drawn = DrawnReport(replace(make_full(scores, HOSTILE), corrupt=frozenset()))
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DrawnReport, "pictures", {})  # drawn from the figures that the page holds
        _write(drawn, folder)
    return Written(drawn.data, drawn, folder)


def test_page(written: Written) -> None:
    page = (written.folder / "report.html").read_bytes().decode("utf-8")
    reader = Tags()
    reader.feed(page)
    active = [a.get("name") or a.get("http-equiv") or a.get("id") for tag, a in reader.tags if tag in ACTIVE]
    assert active == [None, "Content-Security-Policy", "viewport", "x-controls"]  # the first tells the encoding
    assert not [a for _, attributes in reader.tags for a in attributes if a.startswith("on")]
    addresses = [v or "" for _, a in reader.tags for k, v in a.items() if k in ("href", "src", "srcset", "action")]
    assert addresses
    assert all(v.startswith(("#", "data:image/")) for v in addresses)


def test_every_page_has_a_policy() -> None:
    page = fragments.document(HOSTILE, "", style="")
    assert "default-src 'none'; script-src 'none'" in page
    assert page.index("Content-Security-Policy") < page.index("<title>")


def test_pictures_are_well_formed(written: Written) -> None:
    assert len(written.drawn.charts) >= 5
    for svg in written.drawn.charts.values():
        xml.etree.ElementTree.fromstring(svg)


def test_tables(written: Written, tmp_path: Path) -> None:
    written.data.scores.to_csv(tmp_path / "scores.csv")
    files = [tmp_path / "scores.csv", *(written.folder / "tables").glob("*.csv")]
    assert len(files) >= 6
    cells = [cell for file in files for row in csv.reader(io.StringIO(file.read_text("utf-8"))) for cell in row]
    assert sum("1+1" in cell for cell in cells) >= 10, "the test is degenerate"
    for cell in cells:
        assert not re.match(r"[=@\t\r\n]|[+-][^0-9.ein]", cell), cell
    for table in written.drawn.tables:
        lines = markdown(table).splitlines()[2:]
        assert all(re.fullmatch(r"\|.*\|", line) for line in lines)
        assert "<" not in "".join(lines)


def test_markdown(markdown_parser: Any) -> None:
    """Read back by a parser of Markdown, a table has the cells it was given, and no markup or HTML of theirs."""
    given = [["a|b", "\\| \\", HOSTILE], ["*x* _y_ __z__ [l](http://x) `c` ~~s~~ #", None, "two\nlines|"]]
    tokens = markdown_parser.parse(markdown_table([["one", "two", "three"], *given]))
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 9
    assert {child.type for cell in cells for child in cell.children} <= {"text", "text_special"}
    read = ["".join(child.content for child in cell.children) for cell in cells[3:]]
    assert read[:2] == ["a|b", "\\| \\"]
    assert read[3:] == ["*x* _y_ __z__ [l](http://x) `c` ~~s~~ #", "", "two lines|"]
    assert "1+1" in read[2]
    assert not STEERING.search(read[2])


@pytest.fixture
def markdown_parser() -> Any:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    return parser.enable(["table", "strikethrough"])


def test_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    log = printable_logger("lightning_sgdinf.of_this_test")
    with caplog.at_level("INFO"):
        log.info("%s: %d of %s", HOSTILE, 3, Path(f"x{ESCAPE}"))
        log.warning(HOSTILE)
    assert len(caplog.messages) == 2
    assert all("1+1" in said for said in caplog.messages)
    assert not any(STEERING.search(said) for said in caplog.messages)


def test_every_logger_of_the_package_is_such_a_one() -> None:
    root = Path(lightning_sgdinf.__file__).parent
    files = {file.relative_to(root).as_posix(): file.read_text() for file in root.rglob("*.py")}
    made = {name: re.findall(r"getLogger\((.*?)\)", text) for name, text in files.items()}
    assert sum(map(len, made.values())) > 2, "the test is degenerate"
    own = {name: of for name, of in made.items() if set(of) - {'"lightning.pytorch"'}}
    assert own == {"plain_text.py": ["name"]}


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors(kind: type[Exception]) -> None:
    error = kind(HOSTILE)
    for shown in (str(error), "".join(traceback.format_exception(error))):
        assert "1+1" in shown
        assert not STEERING.search(shown)
    assert error.args == (HOSTILE,)


def test_warnings_of_the_recorder() -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    guard = Guard(strict=False)
    says = (Diagnostics(strict=False).remark, lambda text: guard.run(fail, text), lambda text: guard.last(fail, text))
    for say in says:
        with pytest.warns(UserWarning, match="1.1") as told:
            say(HOSTILE)
        assert not STEERING.search(str(told[0].message))


def test_parquet(written: Written, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written.data.scores.to_parquet(tmp_path / "scores.parquet")
    assert parquet.read_table(tmp_path / "scores.parquet").num_rows == 40


def test_files_keep_them_as_they_are(written: Written, tmp_path: Path) -> None:
    scores = written.data.scores
    scores.save(tmp_path / "scores.h5")
    again = Scores.load(tmp_path / "scores.h5")
    assert (again.queries, again.labels) == (scores.queries, scores.labels)


def test_terminal_and_notebook(written: Written) -> None:
    scores = written.data.scores
    ranking = scores.most_helpful(40, 1)
    assert "1+1" in repr(ranking)
    for shown in (repr(ranking), str(scores)):
        assert not STEERING.search(shown)
    reader = Tags()
    reader.feed(ranking._repr_html_() + scores._repr_html_())
    harmless = {"p", "table", "tr", "th", "td", "b", "div", "h4"}
    assert {tag for tag, _ in reader.tags} <= harmless


def test_console() -> None:
    out = io.StringIO()
    console = Console(file=out, width=2000, highlight=False)
    table = Table(title=plain(HOSTILE))
    table.add_column(plain(HOSTILE))
    table.add_row(plain(HOSTILE))
    console.print(table)
    console.print(f"[bold]{plain(HOSTILE)}[/]")
    assert not STEERING.search(out.getvalue())
    assert out.getvalue().count("[/] [link=http://x.example]y[/link]") == 4
