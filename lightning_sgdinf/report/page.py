"""The report as one HTML page that needs no other file and no network.

A printed part that needs no script, and a part in which all examples can be sorted, searched and compared. The page's
policy lets nothing run but the script that is part of this package, and nothing load from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Literal

from lightning_sgdinf.random_state import preserved
from lightning_sgdinf.ranking import Ranking, score_name, sign_sentence
from lightning_sgdinf.report import explorer, fragments, tables
from lightning_sgdinf.report.brief import answer, chance, question, sureness
from lightning_sgdinf.report.model import BeforeAfter, Explanation, ReportData, method_label

EPOCH_LEGEND = "Down: leaving the example out of that epoch helps (it harmed); up: it helped."
_LONGEST_NAME = 40  # of a check
_CHECKED = (
    "The training was recorded step by step. Each line names one thing that was compared, where, and how far apart "
    "both sides were. Replay: the recorded steps taken again. Gradient: the scores against trainings in which single "
    "examples weigh a little more or less. Trust: examples really left out, and the training taken again without them."
)
PAGE_BYTES = 14_500_000
"""Size that a page keeps below, as long as its printed part leaves room."""


SECTIONS: Mapping[str, str] = {
    "before-after": "Before and after leaving out",
    "most-harmful": "Most harmful examples",
    "most-helpful": "Most helpful examples",
    "all-examples": "All examples",
    "scores": "All scores",
    "detection": "Known corrupt examples found",
    "explanations": "Behind single predictions",
    "certificate": "How sure it is",
    "epochs": "When in training it happened",
    "costs": "What it took",
    "asked": "What was asked",
}
"""The parts of a page in their order: the name in an address, and the heading. Tables, figures and keys of loggers have
the same names."""


def render_page(data: ReportData, charts: Mapping[str, str]) -> str:
    """Return the whole page.

    Args:
        data: What it shows.
        charts: SVG of the figures for which there are data, by the names of `figures.all_figures`.
    """
    with preserved():  # data sets may draw from global generators when they are looked at
        sections = {name: "".join(content) for name, content in _sections(data, charts)}
        script, style = explorer.script(), fragments.resource("page.css") + fragments.resource("browser/explorer.css")
        printed = sum(len(part.encode("utf-8", "replace")) for part in (*sections.values(), script, style))
        embedded, notes = explorer.content(data, room=PAGE_BYTES - printed - len(data.config) - 50_000)
    said = "".join(f'<p class="sign">{escape(note)}</p>' for note in notes)
    sections["all-examples"] = fragments.resource("browser/explorer.html") + said
    names = [name for name in SECTIONS if name in sections]
    links = "".join(f'<a href="#{name}">{escape(SECTIONS[name])}</a> ' for name in names)
    body = "".join(fragments.section(name, SECTIONS[name], sections[name]) for name in names)
    content = (
        f'{_head(data)}<nav aria-label="Parts of this page">{links}</nav>\n<main>{body}</main>\n{_foot(data)}'
        f"{embedded}<script>{script}</script>"
    )
    return fragments.document(data.title, content, style=style, script=script)


def _head(data: ReportData) -> str:
    warnings = "".join(f"<p><strong>Warning.</strong> {escape(warning)}</p>" for warning in data.all_warnings)
    verdict, reason = sureness(data)
    more = '<a href="#certificate">What was checked</a>'
    doubt = f"<p>{_unbroken(chance(data))}</p>" if chance(data) else ""
    lines = {
        "Asked": f"<p>{escape(question(data))}</p>",
        "Found": f'<p class="headline">{_unbroken(answer(data))}</p>',
        "How sure": f"{doubt}<p>The scores: <strong>{escape(verdict)}</strong> {escape(reason)} {more}</p>",
    }
    brief = "".join(f"<dt>{name}</dt><dd>{content}</dd>" for name, content in lines.items())
    return (
        f'<header><h1>{escape(data.title)}</h1>{fragments.aside(warnings)}<dl class="brief">{brief}</dl>'
        f'<div class="facts">{"".join(_facts(data))}</div></header>\n'
    )


def _unbroken(text: str) -> str:
    return re.sub(r"\bp = ", "p&nbsp;=&nbsp;", escape(text))  # never broken across lines


def _facts(data: ReportData) -> Iterator[str]:
    total = f"{len(data.scores):,}"
    if data.better != "order":
        harmful = int((data.scores.harm(data.query) > 0).sum())
        share = f"({100 * harmful / len(data.scores):.0f} %)"
        meaning = f"training examples {share} are predicted to improve {data.query_name} if left out"
        yield fragments.fact(f"{harmful:,} of {total}", meaning)
    for change in data.before_after[:1]:
        yield _change(change)
    for method, detection in list(data.detections.items())[:1]:
        first = (
            f"first {detection.corrupt:,} of {method}; chance would find {detection.corrupt**2 / detection.total:.2g}"
        )
        rival, most = max(((name, d.hits) for name, d in data.detections.items()), key=lambda pair: pair[1])
        better = f", {method_label(data, rival)} {most:,}" if most > detection.hits else ""
        yield fragments.fact(
            f"{detection.hits:,} of {detection.corrupt:,}", f"known corrupt examples are among the {first}{better}"
        )
    trust = None if data.scores.certificate is None else data.scores.certificate.trust
    if trust is not None and trust.headline is not None:
        left_out = f"by {len(trust.example_ids)} of {trust.population} left out of {trust.where}"
        interval = "" if trust.low == trust.high else f", 95 % interval {trust.low:.2f} to {trust.high:.2f}"
        yield fragments.fact(
            f"{trust.headline:.2f}", f"correlation of predicted and true effects, {left_out}{interval}"
        )


def _change(change: BeforeAfter) -> str:
    """Return a metric before and after as a fact, in examples where it is a share of them."""
    before, after = (change.show(value) for value in change.means)
    runs = f", means of {len(change.before)} runs" if len(change.before) > 1 else ""
    left_out = "" if change.removed is None else f" leaving out {change.removed:,}"
    if change.counts is None:
        on = f" on {change.where}" if change.where else ""
        return fragments.fact(f"{before} → {after}", f"{change.metric}{on}, before → after{left_out}{runs}")
    was, now = (f"{count:.4g}" for count in change.counts)
    meaning = f"{change.noun} wrong, before → after{left_out} ({change.metric} {before} → {after}{runs})"
    return fragments.fact(f"{was} → {now} of {change.measured_on:,}", meaning)


def _sections(data: ReportData, drawn: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every part of the page for which there are data, by its name in `SECTIONS`."""
    if data.before_after or data.curves:
        yield "before-after", _effect(data, drawn)
    harmful = data.scores.most_harmful(data.shown, data.query)
    helpful = data.scores.most_helpful(data.shown, data.query)
    yield "most-harmful", _sheet(data, harmful, "harmful")
    yield "most-helpful", _sheet(data, helpful, "helpful")
    yield "scores", _distribution(data, drawn)
    if data.detections:
        yield "detection", _detection(data, drawn)
    if data.explanations:
        yield "explanations", tuple(_case(data, explanation) for explanation in data.explanations)
    yield "certificate", _trust(data, drawn)
    if "epoch-contributions" in drawn:
        caption = f"Each epoch's share of the scores; the shares of all epochs add up to the score. {EPOCH_LEGEND}"
        chart = fragments.chart(drawn["epoch-contributions"], caption, "Mean contribution of each epoch to the scores")
        yield "epochs", (_charts(chart),)
    if data.costs:
        yield "costs", (fragments.table(tables.cost_table(data)),)
    if data.asked or data.command or data.config or data.scores.provenance:
        yield "asked", _asked(data)


def _charts(*charts: str) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _effect(data: ReportData, drawn: Mapping[str, str]) -> tuple[str, ...]:
    charts: list[str] = []
    content: list[str] = []
    if data.before_after:
        several = any(len(change.before) > 1 for change in data.before_after)
        caption = (
            "Thin lines are single runs, the thick one is their mean."
            if several
            else "With all examples, and again after cleansing."
        )
        charts.append(fragments.chart(drawn["before-after"], caption, "Metrics before and after cleansing"))
        content.append(fragments.table(tables.before_after_table(data)))
    if data.curves:
        caption = "Re-trained without the examples each method ranks most harmful."
        if any(curve.chosen is not None for curve in data.curves):
            caption += " The ring: the number that was chosen on held-out data, before this curve was drawn."
        alternative = f"Curves of {data.curves[0].metric} against the number of examples left out, per method"
        charts.append(fragments.chart(drawn["cleansing-curves"], caption, alternative))
        content.append(fragments.folded("Every point of the curves", fragments.table(tables.curve_table(data))))
    return (_charts(*charts), *content)


def _sheet(data: ReportData, ranking: Ranking, end: Literal["harmful", "helpful"]) -> tuple[str, ...]:
    known = " Outlined: known to be corrupt." if data.known_corrupt.intersection(ranking.example_ids) else ""
    error = "" if ranking.standard_errors is None else ", with the standard error of its sampling"
    sentence = (
        f"The number under each example is its {score_name(ranking.query, ranking.better)}{error}; "
        f"{sign_sentence('it', ranking.better, end)}.{known}"
    )
    table = fragments.table(tables.ranking_table(data, ranking, f"most-{end}"))
    shown = {row.example_id: data.examples[row.example_id] for row in ranking if row.example_id in data.examples}
    if shown and all(example.is_row for example in shown.values()):
        return (table,)  # its columns say all there is
    sheet = [
        fragments.tile(
            shown[row.example_id],
            name=f"#{row.example_id}",
            label=row.label or "",
            note=fragments.signed(row.score) + ("" if error is None else f" ± {fragments.number(error, 2)}"),
            corrupt=row.example_id in data.known_corrupt,
            training_id=row.example_id,
        )
        for row, error in zip(ranking, ranking.standard_errors or (None,) * len(ranking), strict=True)
        if row.example_id in shown
    ]
    head = f'<p class="sign">{escape(sentence)}</p>'
    if not sheet:
        return (table,)
    return (head, fragments.tiles(sheet), fragments.folded(f"As a table ({len(ranking)} rows)", table))


def _distribution(data: ReportData, drawn: Mapping[str, str]) -> tuple[str, ...]:
    caption = f"Distribution of all scores; {sign_sentence(data.query_name, data.better)}."
    return (_charts(fragments.chart(drawn["score-distribution"], caption, "Histogram of the scores")),)


def _detection(data: ReportData, drawn: Mapping[str, str]) -> tuple[str, ...]:
    caption = "How many of the known corrupt examples a person finds who inspects in the order of each ranking."
    alternative = "Corrupt examples found against examples inspected"
    inspected = fragments.chart(drawn["corrupt-found"], caption, alternative)
    caption = "Precision and recall of finding them; AP is the average precision."
    recalled = fragments.chart(drawn["precision-recall"], caption, "Precision against recall, per method")
    return (_charts(inspected, recalled, fragments.table(tables.detection_table(data))),)


def _case(data: ReportData, explanation: Explanation) -> str:
    sentence = (
        f"Training examples behind it, with the change of {explanation.query} had each been left out; "
        f"{sign_sentence('it', explanation.better)}."
    )
    labels = data.scores.labels
    causes = (
        fragments.tile(
            data.examples.get(example_id),
            name=f"#{example_id}",
            label="" if labels is None else labels[example_id],
            note=fragments.signed(score),
            corrupt=example_id in data.known_corrupt,
            training_id=example_id,
        )
        for example_id, score in explanation.causes
    )
    return (
        f'<div class="case"><h3>{escape(explanation.title)}</h3><p class="sign">{escape(sentence)}</p>'
        f"{fragments.tile(explanation.example, name='the example')}{fragments.tiles(causes)}</div>"
    )


def _trust(data: ReportData, drawn: Mapping[str, str]) -> tuple[str, ...]:
    certificate = data.scores.certificate
    if certificate is None:
        return (fragments.paragraphs(("This ranking carries no certificate: nothing was checked.",)),)
    text = f'<p class="sign">{escape(_CHECKED)}</p>{"".join(map(_check, certificate.summary()))}'
    if "predicted-measured" not in drawn:
        return (text,)
    caption = "Each point is a sampled training example whose effect was measured by really running the steps again."
    text = f"<div>{text}</div>"
    return (_charts(text, fragments.chart(drawn["predicted-measured"], caption, "Predicted against measured change")),)


def _check(sentence: str) -> str:
    """Return a sentence on a check, what it checked in bold."""
    name, colon, rest = sentence.partition(":")
    if not colon or len(name) > _LONGEST_NAME:
        return f"<p>{escape(sentence)}</p>"
    return f"<p><strong>{escape(name)}:</strong>{escape(rest)}</p>"


def _asked(data: ReportData) -> tuple[str, ...]:
    origin = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in data.scores.provenance.items()
    }
    content = [fragments.pairs({**data.asked, **{k: v for k, v in origin.items() if k not in data.asked}})]
    if data.command:
        content.append(f"<pre>{escape(data.command)}</pre>")
    if data.config:
        content.append(fragments.folded("Configuration", f"<pre>{escape(data.config)}</pre>"))
    return tuple(content)


def _foot(data: ReportData) -> str:
    return f"<footer>lightning_sgdinf. Sign of a score: {escape(sign_sentence(data.query_name, data.better))}.</footer>"
