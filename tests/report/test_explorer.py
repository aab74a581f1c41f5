"""The list of all examples, used in a real browser."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lightning_sgdinf.report import Example, ReportData, SafeHtml, explorer
from lightning_sgdinf.report.fragments import number, signed
from lightning_sgdinf.scores import Scores
from tests.report.conftest import Visit

MINUS = "\N{MINUS SIGN}"
CONTRAST, NAMELESS = (Path(__file__).with_name(f"{name}.js").read_text() for name in ("contrast", "nameless"))


def order_of(data: ReportData) -> list[int]:
    return np.argsort(data.scores.values[:, 0].numpy(), kind="stable").tolist()


def cell(visit: Visit, example: int, kind: str) -> str:
    return visit.page.inner_text(f".x-row[data-number='{example}'] .x-{kind}")


def test_the_list_begins_with_the_most_harmful(visit: Visit) -> None:
    order = order_of(visit.data)
    ids = visit.ids()
    assert ids == order[: len(ids)]
    assert len(ids) < 40, "only what is in view exists"
    assert visit.count() == "40 examples"
    assert cell(visit, order[2], "rank") == "3"
    assert cell(visit, order[2], "score") == signed(visit.data.scores.values[order[2], 0].item())


def test_sorting_by_the_heads_and_by_the_menu(visit: Visit) -> None:
    page = visit.page
    page.click("[data-sort=id]")
    assert visit.ids()[:4] == [0, 1, 2, 3]
    assert page.get_attribute("[role=columnheader]:has([data-sort=id])", "aria-sort") == "ascending"
    page.click("[data-sort=id]")
    assert visit.ids()[:2] == [39, 38]
    assert page.get_attribute("[role=columnheader]:has([data-sort=id])", "aria-sort") == "descending"
    page.select_option("#x-sort", "label")
    page.uncheck("#x-reversed")
    labels = [cell(visit, i, "label").split("\n")[0] for i in visit.ids()[:4]]
    assert labels[0] == visit.data.scores.labels[39]  # type: ignore[index]
    assert labels[1:] == ["label 0", "label 1", "label 2"], "numbers in names count as numbers"
    page.select_option("#x-sort", label="age")
    assert visit.ids()[0] == order_of(visit.data)[20], "those without a value come last"


def test_filters(visit: Visit, hostile: str) -> None:
    page, order = visit.page, order_of(visit.data)
    page.select_option("#x-known", "corrupt")
    assert visit.ids() == [i for i in order if i in visit.data.known_corrupt]
    assert visit.count() == "5 of 40 examples"
    page.select_option("#x-known", "")
    page.fill("#x-from", "3")
    page.fill("#x-to", "5")
    assert visit.ids() == order[2:5]
    page.click("button[type=reset]")
    page.wait_for_function("() => document.getElementById('x-count').textContent === '40 examples'")
    page.select_option("#x-label", label="label 7")
    assert visit.ids() == [7]
    page.click("button[type=reset]")
    page.fill("#x-search", hostile.upper())
    assert set(visit.ids()) == {39, order[0], order[1], order[20]}
    page.fill("#x-search", "#12")
    assert visit.ids() == [12]
    page.fill("#x-search", "nowhere")
    assert visit.ids() == []
    assert page.is_visible("#x-empty")
    assert page.get_attribute("#x-list", "aria-activedescendant") is None
    page.click("#x-again")
    page.wait_for_function("() => document.getElementById('x-count').textContent === '40 examples'")


def test_another_ranking_brings_another_order(visit: Visit) -> None:
    menu = "() => [...document.getElementById('x-column').options].map((one) => one.textContent)"
    singles = [f"loss of validation example {i}" for i in range(5)]
    assert visit.page.evaluate(menu) == ["validation loss", "margin", *singles], "questions, and no methods"
    visit.page.select_option("#x-column", label="margin")
    worst = np.argsort(-visit.data.scores.values[:, 1].numpy(), kind="stable").tolist()
    assert visit.ids()[:5] == worst[:5]
    assert visit.page.inner_text("#x-score-head") == "change of margin if left out"
    visit.page.select_option("#x-column", label="loss of validation example 2")
    assert visit.data.single is not None
    single = visit.data.single.values[:, 2].numpy()
    assert visit.ids()[:5] == np.argsort(single, kind="stable").tolist()[:5]
    assert cell(visit, int(single.argmin()), "rank") == "1"
    visit.page.select_option("#x-method", label="random")
    assert visit.page.evaluate(menu) == ["random"]
    ranked = visit.data.compared["random"].order().tolist()
    assert visit.ids()[:5] == ranked[:5]
    visit.page.click("button[type=reset]")
    visit.page.wait_for_function("() => document.getElementById('x-column').value === '0'")
    assert visit.ids()[:5] == order_of(visit.data)[:5]


def test_harm_is_on_the_left_and_at_the_bottom_whichever_way_a_question_points(visit: Visit) -> None:
    page = visit.page
    side = """(example) => {
      const bar = document.querySelector(`.x-row[data-number="${example}"] .x-diverging > span`);
      const [own, whole] = [bar.getBoundingClientRect(), bar.parentElement.getBoundingClientRect()];
      return [bar.className, (own.left + own.right) / 2 < (whole.left + whole.right) / 2];
    }"""
    for query, sign in (("validation loss", -1), ("margin", 1)):
        page.select_option("#x-column", label=query)
        for reverse, harms in ((False, True), (True, False)):
            page.set_checked("#x-reversed", reverse)
            example = visit.ids()[0]
            q = visit.data.scores.queries.index(query)
            assert (sign * visit.data.scores.values[example, q].item() > 0) == harms, "the test is degenerate"
            assert page.evaluate(side, example) == ["x-harm-fill" if harms else "x-help-fill", harms]
    for better in ("lower", "higher"):
        paths = page.evaluate("(better) => sgdinf.barPaths([-1, 2], better, 20, 30)", better)
        ends = {name: float(re.findall(r"V([\d.]+)h", paths[name])[0]) for name in ("harm", "help")}
        assert ends["help"] < paths["zero"] < ends["harm"], "pixels are counted from above"


def test_a_click_shows_the_example_its_epochs_and_whom_it_hurts(visit: Visit) -> None:
    page, data = visit.page, visit.data
    example = order_of(data)[4]
    page.click(f".x-row[data-number='{example}'] .x-label")
    dialog = page.inner_text("#x-detail")
    assert f"Example {example}" in dialog
    score = data.scores.values[example, 0].item()
    assert f"Harmful: leaving it out is predicted to lower validation loss by {number(-score)}." in dialog
    assert data.single is not None
    effects = data.single.values[example].tolist()
    for heading, side in (("It hurts", -1), ("It helps", 1)):
        told = page.locator(f".x-sides > div:has(h5:text-is('{heading}')) li").all_inner_texts()
        expected = sorted((i for i in range(5) if side * effects[i] > 0), key=lambda i: -abs(effects[i]))
        assert [int(re.findall(r"validation example (\d)", text)[0]) for text in told] == expected
        assert all(
            f"labelled held {i}" in text and signed(effects[i]) in text for i, text in zip(expected, told, strict=True)
        )
    page.click("#x-detail summary")
    shares = page.locator("#x-detail details td:nth-child(2)").all_inner_texts()
    assert data.scores.per_epoch is not None
    own = data.scores.per_epoch[:, example, 0].tolist()
    assert [float(text.replace(MINUS, "-")) for text in shares] == pytest.approx(own, rel=0.01)
    assert "epoch" in (page.get_attribute("#x-detail svg", "aria-label") or "")


def test_everything_can_be_done_with_keys(visit: Visit) -> None:
    page, order = visit.page, order_of(visit.data)
    active = """() => {
      const name = document.getElementById("x-list").getAttribute("aria-activedescendant");
      return document.getElementById(name).dataset.number;
    }"""
    page.focus("#x-list")
    page.keyboard.press("End")
    assert int(page.evaluate(active)) == order[-1]
    assert order[-1] in visit.ids()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert int(page.evaluate(active)) == order[1]
    page.keyboard.press("PageDown")
    assert order.index(int(page.evaluate(active))) > 3
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    assert page.inner_text("#x-csv") == "Download the 1 marked as CSV"
    page.keyboard.press("Enter")
    assert page.inner_text("#x-detail-title") == f"Example {order[0]}"
    assert page.is_checked("#x-mark")
    assert page.is_disabled("#x-previous")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#x-detail-title") == f"Example {order[2]}"
    page.keyboard.press("Tab")
    inside = "() => document.activeElement === document.body || document.activeElement.closest('#x-detail') !== null"
    assert page.evaluate(inside)
    page.keyboard.press("Escape")
    assert not page.is_visible("#x-detail")
    assert page.evaluate("() => document.activeElement.id") == "x-list"
    assert int(page.evaluate(active)) == order[2], "the list stands where the dialog was"


def downloaded(page: Any) -> list[dict[str, str]]:
    with page.expect_download() as caught:
        page.click("#x-csv")
    assert caught.value.suggested_filename == "training-examples.csv"
    text = Path(caught.value.path()).read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_selection_as_csv(visit: Visit, hostile: str) -> None:
    data, order = visit.data, order_of(visit.data)
    visit.page.fill("#x-to", "21")
    rows = downloaded(visit.page)
    assert [int(row["example id"]) for row in rows] == order[:21]
    assert [int(row["rank"]) for row in rows] == list(range(1, 22))
    for name, scores, q in (
        ("change of validation loss if left out", data.scores, 0),
        (f"change of validation loss if left out (other {hostile})", data.compared[f"other {hostile}"], 0),
        ("change of loss of validation example 4 if left out", data.single, 4),
    ):
        values = [float(row[name]) for row in rows]
        assert values == pytest.approx(scores.values[order[:21], q].tolist(), rel=1e-6)  # type: ignore[union-attr]
    assert rows[0]["true label"] == hostile
    assert [row["known corrupt"] for row in rows[:4]] == ["yes"] * 3 + [""]
    assert rows[1]["text"] == f"a text with {hostile}"
    assert (rows[20]["age"], rows[20][hostile], rows[20]["share"]) == ("39", hostile, "0.25")


def test_marked_examples_are_the_selection(visit: Visit) -> None:
    ids = visit.ids()
    for example in (ids[3], ids[1]):
        visit.page.check(f".x-row[data-number='{example}'] input")
    assert [int(row["example id"]) for row in downloaded(visit.page)] == [ids[1], ids[3]]
    visit.page.check("#x-marked-only")
    assert visit.ids() == [ids[1], ids[3]]
    visit.page.click("#x-unmark")
    assert visit.count() == "40 examples"


def test_two_rankings_are_compared(visit: Visit) -> None:
    page, data = visit.page, visit.data
    page.select_option("#x-second", label="random, by random")
    ranks = [scores.ranks().numpy() for scores in (data.scores, data.compared["random"])]
    common = int(((ranks[0] <= 4) & (ranks[1] <= 4)).sum())
    told = page.inner_text("#x-agreement")
    assert f"Rank correlation {number(float(spearmanr(*ranks).statistic))}." in told
    assert f"Of the 4 most harmful by each, {common} are the same" in told
    gap = ranks[0].astype(int) - ranks[1].astype(int)
    page.locator("#x-first-only button").first.click()
    assert page.inner_text("#x-detail-title") == f"Example {gap.argmin()}"
    page.keyboard.press("Escape")


def test_a_box_in_the_comparison_chooses_what_is_in_it(visit: Visit) -> None:
    page, data = visit.page, visit.data
    page.select_option("#x-second", label="random, by random")
    canvas = page.locator("#x-scatter")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 1, box["y"] + box["height"] - 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    ranks = [scores.ranks().numpy() for scores in (data.scores, data.compared["random"])]
    inside = [i for i in order_of(data) if ranks[0][i] <= 20 and ranks[1][i] <= 20]
    assert 3 < len(inside) < 20, "the test is degenerate"
    assert abs(int(visit.count().split()[0]) - len(inside)) <= 2  # a pixel more or less
    assert set(visit.ids()) <= {i for i in range(40) if ranks[0][i] <= 22 and ranks[1][i] <= 22}
    page.click("#x-box")
    assert visit.count() == "40 examples"


def test_the_comparison_is_reached_with_keys_alone(visit: Visit) -> None:
    page, data = visit.page, visit.data
    page.select_option("#x-second", label="random, by random")
    ranks = [scores.ranks().numpy().astype(int) for scores in (data.scores, data.compared["random"])]

    def pointed() -> int:
        said = page.inner_text("#x-pointed")
        here = int(re.findall(r"#(\d+)", said)[0])
        assert said.endswith(f"rank {ranks[0][here]} and {ranks[1][here]}")
        return here

    page.focus("#x-second")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "x-scatter"
    page.keyboard.press("ArrowRight")
    assert pointed() == min(range(40), key=lambda i: float(np.hypot(ranks[0][i], ranks[1][i])))
    for _ in range(39):
        page.keyboard.press("ArrowRight")
    here = pointed()
    assert here == ranks[0].argmax(), "to the right until there is nothing further right"
    page.keyboard.press("ArrowLeft")
    left = pointed()
    assert ranks[0][left] < ranks[0][here]
    page.keyboard.press("Enter")
    assert page.inner_text("#x-detail-title") == f"Example {left}"
    page.keyboard.press("Escape")
    page.focus("#x-scatter")
    for key in ("ArrowLeft", "ArrowDown") * 6:
        page.keyboard.press(f"Shift+{key}")
    a, b = (r[left] for r in ranks)  # the box reaches twelve of forty ranks, or to the edge, a pixel more or less
    inside = {i for i in range(40) if a - 13 <= ranks[0][i] <= a + 1 and b - 13 <= ranks[1][i] <= b + 1}
    assert left in visit.ids()
    assert set(visit.ids()) <= inside
    page.focus("#x-scatter")
    page.keyboard.press("Escape")
    assert visit.count() == "40 examples"


def test_the_example_that_is_open_has_an_address(visit: Visit) -> None:
    page, order = visit.page, order_of(visit.data)
    fragment = "() => location.hash"
    page.click(f".x-row[data-number='{order[1]}'] .x-label")
    assert page.evaluate(fragment) == f"#example-{order[1]}"
    page.click("#x-next")
    assert page.evaluate(fragment) == f"#example-{order[2]}"
    page.keyboard.press("Escape")
    page.wait_for_function("() => location.hash === ''")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("example-40", "There is no training example 40: they are numbered from 0 to 39."),
        ("nowhere", "#nowhere, which is no part of it"),
        ("example-%", "#example-%, which is no part of it"),
    ],
)
def test_an_address_that_leads_nowhere_says_so(visit: Visit, address: str, said: str) -> None:
    page = visit.page
    page.evaluate("(name) => { location.hash = name; }", address)
    page.wait_for_selector("#x-address", state="visible")
    assert said in page.inner_text("#x-address")
    page.evaluate("() => { location.hash = 'most-helpful'; }")
    page.wait_for_selector("#x-address", state="hidden")


def test_a_tile_of_the_printed_part_opens_its_example(visit: Visit) -> None:
    example = visit.data.scores.most_helpful(1).example_ids[0]
    visit.page.evaluate(f"() => {{ location.hash = 'example-{example}' }}")
    visit.page.wait_for_selector("#x-detail[open]")
    assert visit.page.inner_text("#x-detail-title") == f"Example {example}"
    visit.page.keyboard.press("Escape")
    tile = visit.page.locator(".tile[data-example] .x-link").first
    name = tile.inner_text()
    tile.press("Enter")
    assert visit.page.inner_text("#x-detail-title") == f"Example {name.removeprefix('#')}"


def test_thumbnails_are_the_pictures(visit: Visit) -> None:
    visit.page.fill("#x-search", "#3")
    pixels = visit.page.evaluate(
        """async () => {
          const style = document.querySelector(".x-row:not([hidden]) .x-picture").style;
          const sheet = new Image();
          sheet.src = style.backgroundImage.slice(5, -2);
          await sheet.decode();
          const [x, y] = style.backgroundPosition.split(" ").map(parseFloat);
          const zoom = parseFloat(style.backgroundSize) / sheet.width;
          const pen = document.createElement("canvas").getContext("2d");
          pen.drawImage(sheet, x / zoom, y / zoom);
          return [parseFloat(style.width) / zoom, [...pen.getImageData(0, 0, 48, 64).data]];
        }"""
    )
    side, data = pixels
    drawn = np.array(data).reshape(64, 48, 4)
    small = np.asarray(visit.data.examples[3].image)  # 8 x 8, in the middle of a cell made for larger ones
    place = np.argwhere((drawn[:, :, 0] < 255) | (drawn[:, :, 1] < 255)).min(0)
    top, left = place.tolist()
    assert side == pytest.approx(48)  # the largest picture, of 80 x 60 pixels, fits 64
    np.testing.assert_array_equal(drawn[top : top + 8, left : left + 8, 0], np.round(small * 255))


def test_nothing_is_asked_of_the_network(visit: Visit) -> None:
    assert {url.partition(":")[0] for url in visit.requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in visit.requests) == 1


def test_hostile_text_is_only_shown(visit: Visit, hostile: str) -> None:
    order = order_of(visit.data)
    visit.page.click(f".x-row[data-number='{order[1]}'] .x-label")
    assert visit.page.inner_text(".x-text") == f"a text with {hostile}"
    visit.page.keyboard.press("Escape")
    visit.page.click(f".x-row[data-number='{order[0]}'] .x-label")
    assert f"should be {hostile}" in visit.page.inner_text("#x-detail")
    assert visit.page.evaluate("() => document.scripts.length") == 3


def test_on_a_telephone_nothing_is_wider_than_the_screen(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.querySelector('.x-row').getBoundingClientRect().width < 390")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert not page.is_visible(".x-header")
    order = order_of(visit.data)
    assert visit.ids()[:3] == order[:3]
    page.click(f".x-row[data-number='{order[0]}'] .x-face")
    box = page.locator("#x-detail").bounding_box()
    assert box is not None
    assert box["width"] <= 390
    assert page.evaluate("() => document.getElementById('x-detail-body').scrollWidth <= 390")
    page.click("#x-close")


def test_every_control_has_a_name_and_rows_say_where_they_are(visit: Visit) -> None:
    assert visit.page.evaluate(NAMELESS) == []
    ids = visit.ids()
    indices = visit.page.evaluate(
        "() => [...document.querySelectorAll('.x-row:not([hidden])')].map((r) => [+r.dataset.number, +r.ariaRowIndex])"
    )
    assert dict(indices)[ids[4]] == 6
    assert visit.page.get_attribute("#x-list", "aria-rowcount") == "41"
    children = visit.page.evaluate(
        "() => [...new Set([...document.querySelectorAll('.x-row > *')].map((c) => c.role))]"
    )
    assert children == ["gridcell"]


def test_text_stands_out_from_its_ground(visit: Visit, worded: Visit) -> None:
    for one in (visit, worded):  # light and dark
        one.page.click(".x-row .x-label")
        ratios = one.page.evaluate(CONTRAST)
        one.page.keyboard.press("Escape")
        assert len(ratios) > 60, "the test is degenerate"
        assert min(ratios)[0] >= 4.5, min(ratios)


def test_texts_can_be_searched_and_are_whole_in_the_dialog(worded: Visit) -> None:
    page = worded.page
    page.fill("#x-search", "END7 drives")
    assert worded.ids() == [7]
    assert cell(worded, 7, "face").startswith("post 7 on")
    page.click(".x-row:not([hidden]) .x-face")
    assert page.evaluate("() => document.querySelector('.x-text').textContent") == worded.data.examples[7].text
    page.keyboard.press("Escape")
    page.fill("#x-search", "")
    assert worded.problems == []


def test_rows_show_their_columns_and_can_be_sorted_by_them(worded: Visit) -> None:
    page = worded.page
    page.select_option("#x-sort", label="age")
    assert worded.ids()[:2] == [29, 28]
    page.fill("#x-search", 'c "kind 2"')
    assert worded.ids()[:2] == [29, 26]
    assert cell(worded, 29, "face") == "age 61 · work kind 2"
    page.click(".x-row[data-number='29'] .x-face")
    assert page.locator(".x-pairs > div").all_inner_texts() == ["age\n61", "work\nkind 2", "gain\nmissing"]
    page.keyboard.press("Escape")
    page.fill("#x-search", "")
    page.select_option("#x-sort", "rank")


def test_scores_that_were_sampled_have_their_errors(worded: Visit) -> None:
    page, scores = worded.page, worded.data.scores
    assert scores.standard_error is not None
    first = worded.ids()[0]
    written = f"{signed(scores.values[first, 0].item())} ± {number(scores.standard_error[first, 0].item(), 2)}"
    assert cell(worded, first, "score") == written
    page.click(f".x-row[data-number='{first}'] .x-label")
    assert written in page.inner_text("#x-detail .x-ranks")
    page.keyboard.press("Escape")
    rows = downloaded(page)
    expected = scores.standard_error[[int(row["example id"]) for row in rows], 0].tolist()
    assert [float(row["standard error of loss"]) for row in rows] == pytest.approx(expected, rel=1e-6)


def test_targets_of_a_regression_are_numbers_with_a_range(browser: Any, tmp_path: Path) -> None:
    targets = [7.5, -2.0, 10.25, 3.0, 0.5, 9.0]
    examples = {i: Example(row={"acidity": float(i)}, label=f"{y:g}") for i, y in enumerate(targets)}
    scores = Scores(values=torch.arange(6.0)[:, None], queries=("loss",))
    visit = Visit(browser, ReportData(title="Wine", scores=scores, examples=examples), tmp_path)
    page = visit.page
    assert not page.is_visible("#x-label")
    assert page.inner_text("#x-label-head") == "target"
    assert [page.get_attribute(name, "placeholder") for name in ("#x-least", "#x-most")] == [f"{MINUS}2", "10.25"]
    page.select_option("#x-sort", "label")
    assert visit.ids() == [1, 4, 3, 0, 5, 2], "9 comes before 10.25"
    page.fill("#x-least", "0.5")
    page.fill("#x-most", "9")
    assert visit.ids() == [4, 3, 0, 5]
    page.click(".x-row[data-number='0'] .x-label")
    assert "target 7.5" in page.inner_text("#x-detail")
    assert visit.problems == []
    visit.context.close()


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0", "1", "9"], None),
        (["cat", "1.5"], None),
        (["1.5", "", "2"], [1.5, None, 2]),
        ([str(i) for i in range(1900, 2110)], list(range(1900, 2110))),
        (["1e-3", "-2"], [0.001, -2]),
        (["", ""], None),
    ],
)
def test_classes_that_are_called_by_numbers_are_no_targets(visit: Visit, names: list[str], numbers: object) -> None:
    told = visit.page.evaluate("(names) => sgdinf.numbersOf(names)?.map((n) => (Number.isNaN(n) ? null : n))", names)
    assert told == numbers


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing(browser: Any, full: ReportData, text: str, tmp_path: Path, width: int, scheme: str) -> None:
    package = pytest.importorskip("axe_playwright_python")
    axe = Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
    visit = Visit(browser, full, tmp_path, text, **options)
    visit.page.evaluate(f"{axe};0")
    for opened in (False, True):
        if opened:
            visit.page.click(".x-row .x-label")
        result = visit.page.evaluate("() => axe.run({resultTypes: ['violations']})")
        assert len(result["passes"]) > 20, "the test is degenerate"
        assert [(v["impact"], v["id"], v["nodes"][0]["html"]) for v in result["violations"]] == []
    visit.context.close()


def test_those_who_want_less_motion_get_none(worded: Visit, visit: Visit) -> None:
    durations = "() => getComputedStyle(document.querySelector('.x-row')).transitionDuration"
    assert worded.page.evaluate(durations) == "0s"
    assert visit.page.evaluate(durations) != "0s", "the test is degenerate"


def test_without_scripts_the_printed_part_is_there(browser: Any, full: ReportData, text: str, tmp_path: Path) -> None:
    visit = Visit(browser, full, tmp_path, text, java_script_enabled=False)
    assert not visit.page.is_visible("#explorer")
    assert visit.page.is_visible("noscript .x-state")
    assert visit.page.locator(".tile").count() > 6
    visit.context.close()


def test_html_of_a_renderer_runs_no_script(browser: Any, tmp_path: Path) -> None:
    unsafe = '<b id="made">made</b><img src="x:" onerror="document.title = 1"><script>document.title = 2</script>'
    scores = Scores(values=torch.tensor([[1.0], [2.0]]), queries=("q",))
    data = ReportData(title="Safe", scores=scores, examples={0: Example(html=SafeHtml(unsafe))})
    visit = Visit(browser, data, tmp_path)
    visit.page.click(".x-row[data-number='0']")
    assert visit.page.is_visible(".x-html #made")
    assert visit.page.title() == "Safe"
    assert any("Content Security Policy" in problem for problem in visit.problems)
    visit.context.close()


@pytest.mark.parametrize("value", [0.0, 0.123456, -0.123456, 12345.6, 1e-7, -2.5e30, 99999.9, 1e-4, 0.09999])
def test_numbers_are_written_as_in_the_printed_part(visit: Visit, value: float) -> None:
    assert visit.page.evaluate("(value) => sgdinf.numberText(value)", value) == number(value)


def test_csv_cells_are_quoted_where_they_must_be(visit: Visit) -> None:
    rows = [["a,b", 'say "hi"', "two\nlines", "plain"], [1.5, None, -2e-9, "é"]]
    text = visit.page.evaluate("(rows) => sgdinf.csvText(rows)", rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["a,b", 'say "hi"', "two\nlines", "plain"],
        ["1.5", "", "-2e-9", "é"],
    ]


def test_ranks_of_the_page_are_those_of_scores(visit: Visit) -> None:
    values = [3.0, -1.0, 3.0, 0.5, -1.0, 7.0]
    for better in ("lower", "higher", "order"):
        ranks = visit.page.evaluate("([v, b]) => [...sgdinf.ranksOf(Float32Array.from(v), b)]", [values, better])
        scores = Scores(values=torch.tensor(values)[:, None], queries=("q",), better=(better,))
        assert ranks == scores.ranks().tolist()


def test_a_list_of_millions_can_be_scrolled_to_its_end(visit: Visit) -> None:
    last = visit.page.evaluate(
        """() => {
          const scroller = document.createElement("div");
          scroller.style.cssText = "height: 300px; overflow: auto; position: relative; --row: 20px";
          const body = scroller.appendChild(document.createElement("div"));
          document.body.append(scroller);
          const make = () => {
            const row = document.createElement("p");
            row.style.cssText = "position: absolute; top: 0; margin: 0; height: 20px";
            return row;
          };
          const list = new sgdinf.VirtualList(scroller, body, make, (row, position) => { row.textContent = position; });
          list.show(3_000_000);
          const seen = [2_999_999, 1_234_567, 0].map((position) => {
            list.reveal(position);
            const row = [...body.children].find((one) => !one.hidden && one.textContent === String(position));
            const [a, b] = [row.getBoundingClientRect(), scroller.getBoundingClientRect()];
            return a.top >= b.top - 2 && a.bottom <= b.bottom + 2;
          });
          const count = body.children.length;
          scroller.remove();
          return [seen, count];
        }"""
    )
    assert last[0] == [True, True, True]
    assert last[1] < 40


def test_more_held_out_examples_than_fit_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "SINGLE", 2 * 4 * 14)
    values = torch.tensor(np.random.default_rng(0).normal(size=(10, 6)))
    single = Scores(values=values[:, 1:], queries=tuple("abcde"))
    data = ReportData(title="", scores=Scores(values=values[:, :1], queries=("q",)), single=single)
    page, notes = explorer.content(data, room=10**6)
    assert notes == ("Of 5 held-out examples, the first 2 are here.",)
    assert page.count('"group":"single"') == 2
