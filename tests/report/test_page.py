from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import zlib
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
import torch

from lightning_sgdinf.certificate import Certificate
from lightning_sgdinf.report import Example, ReportData, SafeHtml
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.report.extremes import collect_extremes
from lightning_sgdinf.report.fragments import number, signed
from lightning_sgdinf.report.page import SECTIONS
from lightning_sgdinf.report.tables import all_tables
from lightning_sgdinf.scores import Scores

MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Checks nesting while it reads, and keeps what tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [], "tags left open"
    return reader


@pytest.fixture(scope="session")
def page(text: str) -> Reader:
    return read(text)


def test_it_is_well_formed_with_everything_and_with_nothing(page: Reader, bare: ReportData) -> None:
    assert {"html", "main", "table", "img", "details"} <= {tag for tag, _ in page.tags}
    assert "no certificate" in read(DrawnReport(bare).page).text


def test_it_needs_nothing_from_elsewhere(page: Reader) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert tag != "form" or "action" not in attributes
        assert tag != "script" or set(attributes) <= {"type", "id"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}> runs code"
            if name in {"src", "href", "srcset", "data", "action", "poster"}:
                assert value is not None
                assert value.startswith(("data:image/", "#")), f"<{tag} {name}> points elsewhere"
    style = resources.files("lightning_sgdinf.report").joinpath("page.css").read_text(encoding="utf-8")
    style += resources.files("lightning_sgdinf.report").joinpath("browser/explorer.css").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:|//", style)


def test_its_policy_names_its_script_and_nothing_else_that_could_run(page: Reader) -> None:
    (policy,) = [a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    (own,) = re.findall(r"script-src ([^;]*)", policy)
    code = [text for text in page.scripts if text.startswith('"use strict"')]
    assert own == f"'sha256-{base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()}'"
    assert len(code) == 1
    assert sum(tag == "script" for tag, _ in page.tags) == 3  # the others hold data


def test_what_it_holds_is_read_back_as_it_was(page: Reader, full: ReportData) -> None:
    index = json.loads(page.scripts[0])
    held = page.scripts[1]

    def array(reference: dict, kind: str) -> np.ndarray:
        data = zlib.decompress(base64.b64decode(held[reference["at"] : reference["at"] + reference["size"]]))
        return np.frombuffer(data, np.uint8).reshape(np.dtype(kind).itemsize, -1).T.copy().view(kind).ravel()

    assert [column["group"] for column in index["columns"]] == ["query", "query", "method", "method", *["single"] * 5]
    first = index["columns"][0]
    values = array(first["values"], "<f4") * first["scale"]
    np.testing.assert_allclose(values, full.scores.values[:, 0].numpy(), rtol=1e-6)
    assert array(first["ranks"], "<u4").tolist() == full.scores.ranks().tolist()
    epochs = index["epochs"]
    shares = array(epochs["values"], "<i2").reshape(40, 3) / 32767
    contributions = shares * array(epochs["scale"], "<f4")[:, None] * epochs["unit"]
    assert full.scores.per_epoch is not None
    np.testing.assert_allclose(contributions, full.scores.per_epoch[:, :, 0].T.numpy(), atol=2e-4)


def test_one_epoch_has_no_share_of_its_own(scores: Scores) -> None:
    assert scores.per_epoch is not None
    one = dataclasses.replace(scores, values=scores.per_epoch[0], per_epoch=scores.per_epoch[:1])
    assert 'id="epochs"' in DrawnReport(ReportData(title="Three", scores=scores)).page
    assert 'id="epochs"' not in DrawnReport(ReportData(title="One", scores=one)).page
    assert collect_extremes(ReportData(title="One", scores=one)).harm is None


def test_drawings_inside_it_need_nothing_from_elsewhere(page: Reader) -> None:
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    drawings = [base64.b64decode(s.partition(",")[2]).decode() for s in sources if "svg" in s.partition(",")[0]]
    assert len(drawings) == 7
    for drawing in drawings:
        assert not re.search(r"""(?:href|src)\s*=\s*["'](?!#|data:)""", drawing)
        assert not re.search(r"url\((?!#)", drawing)


def test_hostile_text_stays_text(page: Reader, hostile: str) -> None:
    assert page.text.count(hostile) >= 10, "the test is degenerate"
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert all(hostile not in text for text in page.scripts)
    assert "\\u003cscript" in page.scripts[0]


def test_every_link_has_its_target(page: Reader) -> None:
    targets = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    links = {attributes["href"].removeprefix("#") for tag, attributes in page.tags if tag == "a"}  # type: ignore[union-attr]
    assert links == targets
    assert links == set(SECTIONS)


def test_a_part_has_one_name_wherever_it_is_spoken_of(text: str, full: ReportData) -> None:
    named = dict(re.findall(r'<a href="#([a-z-]+)">([^<]+)</a> ', text))
    headed = dict(re.findall(r'<section id="([a-z-]+)"><h2>([^<]+)</h2>', text))
    assert named == headed == dict(SECTIONS)
    assert list(headed) == list(SECTIONS), "in this order"
    for table in all_tables(full):
        assert table.name in {*SECTIONS, "curves"}, "tables, their files and keys of loggers have the same names"


def test_asked_found_and_how_sure_come_first_with_what_they_were_measured_on(full: ReportData) -> None:
    (change, *_), scores = full.before_after, full.scores
    change = dataclasses.replace(change, measured_on=400, noun="test images")
    reader = read(DrawnReport(dataclasses.replace(full, before_after=(change,))).page)
    head = reader.text[: reader.text.index("Before and after")].replace("\N{NO-BREAK SPACE}", " ")
    places = [head.index(word) for word in ("Asked", "Found", "How sure", f"{(scores.harm() > 0).sum()} of 40")]
    assert places == sorted(places)
    assert "lowered test error from 24.2 % to 16.8 %: 30 of 400 test images fewer" in head
    assert "97 → 67 of 400" in head
    assert "The change of test error may be chance (paired t test over 4 runs: p = " in head
    assert "Known for the end of the training only." in head


def test_every_picture_has_words_for_those_who_do_not_see_it(page: Reader) -> None:
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_warnings_stand_before_the_result(text: str, bare: ReportData) -> None:
    body = text[text.index("<body>") :]
    assert 0 < body.index("Low trust") < body.index('class="headline"')
    assert 'class="warning"' not in DrawnReport(bare).page


def test_an_unchecked_result_says_so_first(bare: ReportData) -> None:
    unchecked = dataclasses.replace(bare.scores, certificate=Certificate(level="off"))
    body = DrawnReport(dataclasses.replace(bare, scores=unchecked)).page.partition("<body>")[2]
    assert 0 < body.index("Nothing was checked") < body.index('class="headline"')


def test_corrupt_examples_are_outlined_and_named_in_words(text: str) -> None:
    tiles = re.findall(r'<figure class="tile( wrong)?"[^>]*>(.*?)</figure>', text, re.DOTALL)
    assert len({bool(wrong) for wrong, _ in tiles}) == 2, "the test is degenerate"
    for wrong, content in tiles:
        assert bool(wrong) == ('class="truth"' in content)


def test_tiles_show_label_id_and_score(text: str, full: ReportData) -> None:
    (worst,) = full.scores.most_harmful(1)
    first = text[text.index('<div class="tiles">') :]
    first = first[: first.index("</figure>")]
    assert f"#{worst.example_id}<" in first
    assert f"{MINUS}{abs(worst.score):.2f}" in first
    assert f">{worst.label}<" in first


def test_without_pictures_the_ranking_is_a_table(bare: ReportData) -> None:
    reader = read(DrawnReport(bare).page)
    assert "tile" not in {attributes.get("class") for _, attributes in reader.tags}
    assert sum(tag == "table" for tag, _ in reader.tags) == 2


def test_rows_are_a_table_with_their_columns(bare: ReportData) -> None:
    rows = {i: Example(row={"age": i, "work <b>": "clerk", "gone": None}) for i in range(40)}
    reader = read(DrawnReport(dataclasses.replace(bare, examples=rows, shown=3)).page)
    assert "tile" not in {attributes.get("class") for _, attributes in reader.tags}
    assert reader.text.count("work <b>") == 2
    assert reader.text.count("clerk") == 6
    assert "gone" not in reader.text


def test_a_renderer_s_html_stands_as_it_is(bare: ReportData) -> None:
    shown = {i: Example(html=SafeHtml("<mark>here</mark>")) for i in range(40)}
    reader = read(DrawnReport(dataclasses.replace(bare, examples=shown, shown=2)).page)
    assert sum(tag == "mark" for tag, _ in reader.tags) == 4


@pytest.mark.parametrize("query", ["validation loss", "margin"])
def test_the_sign_is_spelled_out_for_every_query(scores: Scores, query: str) -> None:
    text = read(DrawnReport(ReportData(title="", query=query, scores=scores)).page).text
    sign = "negative" if query == "validation loss" else "positive"
    assert f"{sign} = harmful" in text
    assert f"Which of the 40 training examples made the {query} better" in text


def test_of_what_only_ranks_no_change_is_promised(scores: Scores) -> None:
    ranked = Scores(values=scores.values[:, :1], queries=("margin of the label",), better=("order",))
    text = read(DrawnReport(ReportData(title="", scores=ranked)).page).text
    worst = ranked.order()[0].item()
    assert f"By margin of the label the most harmful training example is {worst}." in text
    assert "lowest = most harmful: a ranking, not a predicted change" in text
    assert "They are ranked by margin of the label." in text
    for promise in (
        "change of margin",
        "predicted to improve margin",
        "effect on margin",
        "leaving it out is predicted to lower",
    ):
        assert promise not in text


def test_large_pictures_are_scaled_down() -> None:
    scores = Scores(values=torch.zeros(1, 1), queries=("q",))
    noise = np.random.default_rng(0).random((1000, 1000, 3))
    data = ReportData(title="", scores=scores, examples={0: Example(image=noise)})
    assert len(DrawnReport(data).page) < 600_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.123"),
        (-0.123456, MINUS + "0.123"),
        (12345.6, "12346"),
        (1e-7, f"1.00e{MINUS}7"),
        (-2.5e30, MINUS + "2.50e30"),
        (math.inf, "∞"),
        (-math.inf, MINUS + "∞"),
    ],
)
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text
    if math.isfinite(value):
        read_back = float(number(value).replace(MINUS, "-"))
        assert read_back == pytest.approx(value, rel=5e-3, abs=1e-300)


def test_changes_show_their_sign() -> None:
    assert signed(0.5) == "+0.500"
    assert signed(-0.5) == MINUS + "0.500"
    assert signed(0.0) == "0"
