"""The text that the command prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_sgdinf.evaluation import Detection
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.studies import ModuleResult, PipelineParts, PipelineResult
from lightning_sgdinf.studies.console import Console, Table, plain
from lightning_sgdinf.studies.pipeline.stages import Ranked


def print_outcome(parts: PipelineParts, result: PipelineResult, page: Path, console: Console | None = None) -> None:
    """Print the checks, the most harmful examples, the effect of cleansing, and the path of the report."""
    console = console or Console(highlight=False)
    ranked, cleansed = result.ranked, result.cleansed
    _print_certificate(ranked.main, console)
    console.print(_harmful(parts, ranked))
    if result.detections:
        console.print(_detected(result.detections))
    before, after = cleansed.before, cleansed.after
    console.print(f"Cleansing: {plain(cleansed.selection.reason)}.")
    console.print(
        f"Test error [bold]{100 * before.error:.2f} %[/] before, [bold]{100 * after.error:.2f} %[/] after; mean test "
        f"loss {before.loss:.4f} before, {after.loss:.4f} after (on {before.count} test examples)."
    )
    console.print(f"Report: [bold]{plain(page)}[/]", soft_wrap=True)


def print_module_outcome(result: ModuleResult, page: Path, console: Console | None = None) -> None:
    """Print the checks, the most harmful examples, the effect of leaving some out, and the path of the report."""
    console = console or Console(highlight=False)
    _print_certificate(result.main, console)
    for warning in result.warnings:
        console.print(f"[bold red]Warning:[/] {plain(warning)}.", soft_wrap=True)
    ranking = result.main.most_harmful(8)
    table = Table(title="Most harmful training examples", caption=plain(ranking.header), title_justify="left")
    for name in ("rank", "example", "label", "score"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for row in ranking:
        table.add_row(str(row.rank), str(row.example_id), plain(row.label or ""), f"{row.score:+.2e}")
    console.print(table)
    console.print(f"Cleansing: {plain(result.selection.reason)}.")
    where = f"{plain(result.measured)} ({result.measured_on} {result.noun})"
    console.print(f"{where}: [bold]{result.before:.4g}[/] before, [bold]{result.after:.4g}[/] after.")
    console.print(f"Report: [bold]{plain(page)}[/]", soft_wrap=True)


def _print_certificate(scores: Scores, console: Console) -> None:
    if scores.certificate is not None:
        for warning in scores.certificate.warnings:
            console.print(f"[bold red]Warning:[/] {plain(warning)}")
        for line in scores.certificate.summary():
            if line in scores.certificate.warnings:
                continue
            console.print(f"[dim]{plain(line)}[/]")


def _harmful(parts: PipelineParts, ranked: Ranked) -> Table:
    data, ranking = parts.data, ranked.main.most_harmful(8)
    table = Table(title="Most harmful training examples", caption=plain(ranking.header), title_justify="left")
    columns = ["rank", "example", "label", *(["true label"] if data.flipped is not None else []), "score"]
    for name in columns:
        table.add_column(name, justify="right" if name in ("rank", "example", "score") else "left")
    for row in ranking:
        i = row.example_id
        true = data.class_names[int(data.true_labels[i])]
        label = data.class_names[int(data.train_set.labels[i])]
        cells = [
            str(row.rank),
            str(i),
            plain(label),
            *([plain(true)] if data.flipped is not None else []),
            f"{row.score:+.2e}",
        ]
        table.add_row(*cells, style="yellow" if label != true else None)
    return table


def _detected(detections: Mapping[str, Detection]) -> Table:
    corrupt = next(iter(detections.values())).corrupt
    table = Table(title=f"The {corrupt} wrong labels", title_justify="left")
    for name in ("method", f"found among its first {corrupt}", "AUROC"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, detection in detections.items():
        table.add_row(plain(method), str(detection.hits), f"{detection.auroc:.3f}")
    return table
