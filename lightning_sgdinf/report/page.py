"""The report as one HTML page that needs no other file and no network.

A printed part that needs no script, and a part in which all examples can be sorted, searched and compared. The page's
policy lets nothing run but the script that is part of this package, and nothing load from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Literal

from lightning_sgdinf.random_state import preserved
from lightning_sgdinf.ranking import Ranking, score_name, sign_sentence
from lightning_sgdinf.report import explorer, fragments, tables
from lightning_sgdinf.report.model import Explanation, ReportData, said_of_trust

PAGE_BYTES = 14_500_000
"""Size that a page keeps below, as long as its printed part leaves room."""


def render_page(data: ReportData, charts: Mapping[str, str]) -> str:
    """Return the whole page.

    Args:
        data: What it shows.
        charts: SVG of the figures for which there are data, by the names of `figures.all_figures`.
    """
    with preserved():  # data sets may draw from global generators when they are looked at
        sections = list(_sections(data, charts))
        script, style = explorer.script(), fragments.resource("page.css") + fragments.resource("browser/explorer.css")
        body = "".join(fragments.section(name, heading, *content) for name, heading, content in sections)
        room = PAGE_BYTES - sum(len(part.encode()) for part in (body, script, style)) - len(data.config) - 50_000
        embedded, notes = explorer.content(data, room=room)
    everything = ("explore", f"All {len(data.scores):,} examples")
    links = "".join(
        f'<a href="#{name}">{escape(heading)}</a> ' for name, heading in (everything, *(part[:2] for part in sections))
    )
    said = "".join(f'<p class="sign">{escape(note)}</p>' for note in notes)
    explore = fragments.section(*everything, fragments.resource("browser/explorer.html"), said)
    content = (
        f'{_head(data)}<nav aria-label="Sections">{links}</nav>\n<main>{explore}{body}</main>\n{_foot(data)}'
        f"{embedded}<script>{script}</script>"
    )
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
    return fragments.document(data.title, content, style=style, policy=policy)


def _policy(script: str) -> str:
    """Return the page's policy: it may run its own script, known by its digest, and show pictures that it holds
    itself."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = "img-src data: blob:; media-src data: blob:; font-src data:; style-src 'unsafe-inline'"
    return f"default-src 'none'; script-src 'sha256-{digest}'; {own}; base-uri 'none'; form-action 'none'"


def _head(data: ReportData) -> str:
    judged = "ranked by" if data.better == "order" else "judged by their effect on"
    about = f"{len(data.scores):,} training examples, {judged} {data.query_name}"
    warnings = "".join(f"<p><strong>Warning.</strong> {escape(warning)}</p>" for warning in data.all_warnings)
    reach = "".join(f'<p class="sign">{escape(sentence)}</p>' for sentence in said_of_trust(data))
    return (
        f'<header><h1>{escape(data.title)}</h1><p class="about">{escape(about)}</p>{fragments.aside(warnings)}'
        f'<p class="headline">{_result(data)}</p>{reach}<div class="facts">{"".join(_facts(data))}</div></header>\n'
    )


def _result(data: ReportData) -> str:
    return re.sub(r"\bp = ", "p&nbsp;=&nbsp;", escape(data.result()))  # never broken across lines


def _facts(data: ReportData) -> Iterator[str]:
    yield fragments.fact(f"{len(data.scores):,}", "training examples ranked")
    if data.better != "order":
        harmful = int((data.scores.harm(data.query) > 0).sum())
        share = f"{100 * harmful / len(data.scores):.0f} %"
        yield fragments.fact(share, f"predicted to improve {data.query_name} if left out")
    for change in data.before_after[:1]:
        before, after = (change.show(value) for value in change.means)
        yield fragments.fact(f"{before} → {after}", f"{change.metric}, before → after")
    for method, detection in list(data.detections.items())[:1]:
        yield fragments.fact(
            f"{detection.hits} of {detection.corrupt}", f"known corrupt examples at the top of {method}"
        )
    trust = None if data.scores.certificate is None else data.scores.certificate.trust
    if trust is not None and trust.headline is not None:
        left_out = f"by {len(trust.example_ids)} of {trust.population} left out of {trust.where}"
        interval = "" if trust.low == trust.high else f", 95 % interval {trust.low:.2f} to {trust.high:.2f}"
        yield fragments.fact(
            f"{trust.headline:.2f}", f"correlation of predicted and true removals, {left_out}{interval}"
        )


def _sections(data: ReportData, drawn: Mapping[str, str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if data.before_after or data.curves:
        yield "effect", "Did leaving them out help?", _effect(data, drawn)
    harmful = data.scores.most_harmful(data.shown, data.query)
    helpful = data.scores.most_helpful(data.shown, data.query)
    yield "harmful", "Most harmful examples", _sheet(data, harmful, "harmful")
    yield "helpful", "Most helpful examples", _sheet(data, helpful, "helpful")
    yield "scores", "All scores" if not data.detections else "Scores and corrupt examples", _distribution(data, drawn)
    if data.explanations:
        yield (
            "causes",
            "Behind single predictions",
            tuple(_case(data, explanation) for explanation in data.explanations),
        )
    yield "trust", "Can the scores be trusted?", _trust(data, drawn)
    if "epoch-contributions" in drawn:
        caption = "Each epoch's share of the scores; the shares of all epochs add up to the score."
        chart = fragments.chart(drawn["epoch-contributions"], caption, "Mean contribution of each epoch to the scores")
        yield "epochs", "When in training it happened", (_charts(chart),)
    if data.costs:
        yield "costs", "What it took", (fragments.table(tables.cost_table(data)),)
    if data.asked or data.command or data.config or data.scores.provenance:
        yield "asked", "What was asked", _asked(data)


def _charts(*charts: str) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _effect(data: ReportData, drawn: Mapping[str, str]) -> tuple[str, ...]:
    charts: list[str] = []
    content: list[str] = []
    if data.before_after:
        several = any(len(change.before) > 1 for change in data.before_after)
        caption = "Thin lines are single runs, the thick one is their mean." if several else "One run."
        charts.append(fragments.chart(drawn["before-after"], caption, "Metrics before and after cleansing"))
        content.append(fragments.table(tables.before_after_table(data)))
    if data.curves:
        caption = "Re-trained without the examples each method ranks most harmful."
        alternative = "Test error against the number of examples left out, per method"
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
    charts = [fragments.chart(drawn["score-distribution"], caption, "Histogram of the scores")]
    if not data.detections:
        return (_charts(*charts),)
    caption = "How many of the known corrupt examples a person finds who inspects in the order of each ranking."
    charts.append(fragments.chart(drawn["corrupt-found"], caption, "Corrupt examples found against examples inspected"))
    caption = "Precision and recall of finding them; AP is the average precision."
    charts.append(fragments.chart(drawn["precision-recall"], caption, "Precision against recall, per method"))
    return (_charts(*charts, fragments.table(tables.detection_table(data))),)


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
    text = fragments.paragraphs(certificate.summary())
    if "predicted-measured" not in drawn:
        return (text,)
    caption = "Each point is a sampled training example whose effect was measured by really running the steps again."
    text = f"<div>{text}</div>"
    return (_charts(text, fragments.chart(drawn["predicted-measured"], caption, "Predicted against measured change")),)


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
