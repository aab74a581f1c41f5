from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sgdinf.certificate import Certificate, GradientCheck, StepReplay, Trust
from lightning_sgdinf.evaluation import CleansingCurve, detect, paired_t_test
from lightning_sgdinf.report import BeforeAfter, Cost, Example, Explanation, ReportData, SafeHtml
from lightning_sgdinf.report.drawn import DrawnReport
from lightning_sgdinf.scores import Scores

HOSTILE = '<script>alert("1 & 2")</script>'
"""What nobody should have as a label, and somebody will."""


def make_scores(hostile: str = HOSTILE) -> Scores:
    per_epoch = torch.tensor(np.random.default_rng(0).normal(size=(3, 40, 2)))
    certificate = Certificate(
        level="fast",
        step_replay=StepReplay(steps=7, bitwise=7, largest_deviation=0.0),
        gradient_check=GradientCheck(
            first_step=2,
            example_ids=(1, 2),
            predicted=(0.5, 1.0),
            measured=(0.5, 1.0),
            relative_error=1e-9,
            tolerance=1e-4,
        ),
        trust=Trust(
            first_step=2,
            example_ids=(1, 2, 3),
            predicted=(0.1, 2.0, 1.0),
            measured=(1.2, 1.9, 0.0),
            correlation=0.5,
            low=-0.2,
            high=0.9,
            population=40,
            steps=7,
        ),
    )
    return Scores(
        values=per_epoch.sum(0),
        queries=("validation loss", "margin"),
        labels=(*(f"label {i}" for i in range(39)), hostile),
        per_epoch=per_epoch,
        certificate=certificate,
        provenance={"log digest": "9f3a", "versions": {"torch": "2"}},
        better=("lower", "higher"),
    )


@pytest.fixture(scope="session")
def scores() -> Scores:
    return make_scores()


@pytest.fixture(scope="session")
def bare(scores: Scores) -> ReportData:
    """As little as there can be: scores without certificate, labels or epochs."""
    return ReportData(title="Bare", scores=Scores(values=scores.values, queries=scores.queries))


def make_full(scores: Scores, hostile: str = HOSTILE) -> ReportData:
    """Every field filled, hostile strings wherever there are strings."""
    random = np.random.default_rng(1)
    order = scores.order().tolist()
    corrupt = frozenset(order[:3] + order[-2:])
    examples = {
        i: Example(image=random.random((8, 8) if i % 2 else (80, 60, 3)), label=f"label {i}", true_label=f"label {i}")
        for i in range(20)
    }
    examples[order[0]] = Example(image=random.random((8, 8, 1)), label="cat", true_label=hostile)
    examples[order[1]] = Example(text=f"a text with {hostile}", label="dog")
    examples[order[20]] = Example(row={"age": 39, hostile: hostile, "share": 0.25}, label="row")
    examples[order[21]] = Example(html=SafeHtml("<b>made</b> by <i>hand</i>"), label="html")
    names = tuple(f"loss of validation example {i}" for i in range(5))
    single = Scores(values=torch.tensor(random.normal(size=(40, 5))), queries=names)
    before, after = (0.2, 0.3, 0.25, 0.22), (0.1, 0.15, 0.3, 0.12)
    return ReportData(
        title=f"Title {hostile}",
        scores=scores,
        asked={hostile: hostile, "estimator": "SgdInfluence()"},
        command=f"sgdinf note='{hostile}'",
        config=f"note: {hostile}\n",
        examples=examples,
        shown=6,
        corrupt=corrupt,
        detections={
            f"SGD-influence {hostile}": detect(scores.harm(), corrupt),
            "costs $5 and $6, $\\frac{": detect(-scores.harm(), corrupt),
        },
        before_after=(
            BeforeAfter(metric="test error", before=before, after=after, test=paired_t_test(before, after), removed=3),
            BeforeAfter(metric="accuracy in $", before=(0.5,), after=(0.4,), better="higher", percent=False),
        ),
        curves=(
            CleansingCurve(method=hostile, counts=(0, 2, 4), errors=[[0.2, 0.1, 0.15], [0.3, 0.12, 0.2]]),
            CleansingCurve(method="random $x", counts=(0, 2, 4), errors=[0.25, 0.3, 0.35]),
        ),
        explanations=(
            Explanation(
                title=hostile, example=examples[order[1]], causes=((order[0], -0.5), (39, 0.25)), query=hostile
            ),
        ),
        costs=(Cost(part=hostile, seconds=1.5), Cost(part="log", size_bytes=123456)),
        warnings=(hostile,),
        compared={
            f"other {hostile}": Scores(values=scores.values + 0.5, queries=scores.queries, better=scores.better),
            "random": Scores(values=torch.tensor(random.normal(size=(40, 1))), queries=("random",)),
        },
        single=single,
        held_out={name: Example(image=random.random((8, 8)), label=f"held {i}") for i, name in enumerate(names)},
    )


@pytest.fixture(scope="session")
def full(scores: Scores) -> ReportData:
    """See `make_full`."""
    return make_full(scores)


@pytest.fixture(scope="session")
def text(full: ReportData) -> str:
    """The page of everything."""
    return DrawnReport(full).page


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real browser without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


class Visit:
    """A page in the browser, with what went wrong in it and what it asked for.

    Args:
        browser: To open it in.
        data: What the page shows.
        folder: Where to put it.
        text: The page itself, where it is there already.
        options: Of the browser's context, e.g. ``viewport``.
    """

    def __init__(self, browser: Any, data: ReportData, folder: Path, text: str | None = None, **options: Any) -> None:
        self.data = data
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type != "log" else None)
        path = folder / "page.html"
        path.write_text(text or DrawnReport(data).page, encoding="utf-8")
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.evaluate("() => sgdinf.ready.then(() => null)")

    def ids(self) -> list[int]:
        """Ids of the rows that exist, from above."""
        rows = "[...document.querySelectorAll('.x-row:not([hidden])')]"
        return self.page.evaluate(f"() => {rows}.sort((a, b) => a.position - b.position).map((r) => +r.dataset.number)")

    def count(self) -> str:
        """What the page says of how many there are."""
        return self.page.inner_text("#x-count")


@pytest.fixture(scope="session")
def shown(browser: Any, full: ReportData, text: str, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The page of everything, in the browser."""
    return Visit(browser, full, tmp_path_factory.mktemp("page"), text)


@pytest.fixture
def visit(shown: Visit) -> Iterator[Visit]:
    """The same as it was when it was opened; nothing may go wrong in it."""
    shown.page.set_viewport_size({"width": 1280, "height": 900})
    shown.page.evaluate(
        "() => { document.getElementById('x-unmark').click(); document.getElementById('x-controls').reset(); }"
    )
    shown.page.evaluate("() => new Promise((done) => setTimeout(done))")
    yield shown
    if shown.page.evaluate("() => document.getElementById('x-detail').open"):
        shown.page.keyboard.press("Escape")
    assert shown.problems == []


@pytest.fixture(scope="session")
def worded(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """A page of texts and rows, whose scores were sampled."""
    values = torch.tensor(np.random.default_rng(2).normal(size=(30, 1)))
    examples = {
        i: Example(text=f"post {i} on\n<b>drives</b> &amp; {'long ' * 200}end{i}", label="ab"[i % 2]) for i in range(15)
    } | {i: Example(row={"age": 90 - i, "work": f"kind {i % 3}", "gain": None}, label="c") for i in range(15, 30)}
    scores = Scores(values=values, queries=("loss",), standard_error=values.abs() / 7)
    data = ReportData(title="Words", scores=scores, examples=examples)
    return Visit(browser, data, tmp_path_factory.mktemp("words"), color_scheme="dark", reduced_motion="reduce")
