"""Draws what a W&B workspace is given, from the files of an offline run: the panels that docs/dashboards.md describes.

python -m tests.report.draw_dashboard outputs/.../wandb/offline-run-... docs/dashboard.png
"""

from __future__ import annotations

import json
import shutil
import sys
from html import escape
from pathlib import Path
from typing import Any

from lightning_sgdinf.report.images import data_address
from lightning_sgdinf.report.style import dress, legend, new_figure, series, to_svg
from tests.report import wandb_records

SHOWN = ("result", "sure", "test_error/before", "test_error/after", "own/auroc", "trust/of", "trust/left_out")
COLUMNS, ROWS, PICTURES = 9, 8, 16
STYLE = """
body { margin: 0; padding: 24px; width: 1232px; background: #f4f5f6; color: #1d1f21;
  font: 14px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 19px; } h2 { margin: 22px 0 8px; font-size: 15px; }
.about, figcaption { margin: 0; color: #5d6468; } figure { margin: 0; } figcaption { font-size: 11px; }
.panels { display: flex; gap: 14px; }
.panel { flex: 1; min-width: 0; padding: 10px 14px; background: #fff; border: 1px solid #dfe2e4; border-radius: 6px; }
.panel > b { display: block; margin-bottom: 6px; font: 600 12px ui-monospace, monospace; color: #5d6468; }
table { border-collapse: collapse; font-size: 13px; }
td { padding: 3px 14px 3px 0; vertical-align: top; border-bottom: 1px solid #e8eaec; }
.pictures { display: grid; grid-template-columns: repeat(8, 1fr); gap: 6px; }
.pictures img { width: 100%; image-rendering: pixelated; }
.pictures.figures { grid-template-columns: repeat(3, 1fr); } .pictures.figures img { image-rendering: auto; }
"""


def main(arguments: list[str]) -> int:
    """Write the picture."""
    run, target = (Path(argument) for argument in arguments)
    screenshot(workspace(run), target)
    return 0


def workspace(run: Path) -> str:
    """Return the panels as a page, from what is in the folder of an offline run and nothing else."""
    (file,) = run.glob("*.wandb")
    (about,) = [r.run for r in wandb_records.records(file) if r.WhichOneof("record_type") == "run"]
    rows, summary = wandb_records.history(file), wandb_records.summary(file)
    said = {name: summary[f"report/{name}"] for name in SHOWN if f"report/{name}" in summary}
    media = {key: value for row in rows for key, value in row.items() if key.startswith("report/")}
    return (
        f'<!DOCTYPE html><meta charset="utf-8"><style>{STYLE}</style><h1>{escape(about.display_name)}</h1>'
        f'<p class="about">project {escape(about.project)}, job type {escape(about.job_type)}, tags '
        f"{escape(', '.join(about.tags))}</p>"
        f"<h2>What was found</h2>{_panel('summary', _table([[k, _cell(v)] for k, v in said.items()]))}"
        f'<h2>Which examples</h2><div class="panels">{_pictures(run, media, "most-harmful")}'
        f"{_pictures(run, media, 'most-helpful')}</div><br>{_panel('all-examples', _rows(run, media))}"
        f'<h2>Does it help</h2><div class="panels">{_panel("curve/* over left_out", _curves(rows))}</div>'
        f"<h2>Behind it</h2>{_pictures(run, media, 'figures', 6)}"
    )


def screenshot(page: str, target: Path) -> None:
    """Write a picture of a page."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.set_content(page)
        tab.screenshot(path=target, full_page=True)
        browser.close()


def _panel(name: str, content: str) -> str:
    return f'<div class="panel"><b>report/{escape(name)}</b>{content}</div>'


def _table(rows: list[list[str]]) -> str:
    return "<table>" + "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows) + "</table>"


def _cell(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value))


def _pictures(run: Path, media: dict[str, Any], name: str, most: int = PICTURES) -> str:
    pairs = list(zip(media[f"report/{name}/filenames"], media[f"report/{name}/captions"], strict=True))[:most]
    tiles = (f"<figure>{_image(run, file)}<figcaption>{escape(words)}</figcaption></figure>" for file, words in pairs)
    return _panel(name, f'<div class="pictures {name}">{"".join(tiles)}</div>')


def _image(run: Path, file: str) -> str:
    return f'<img src="{data_address((run / "files" / file).read_bytes(), "image/png")}">'


def _rows(run: Path, media: dict[str, Any]) -> str:
    table = json.loads((run / "files" / media["report/all-examples/path"]).read_text())
    head = [f"<b>{escape(column)}</b>" for column in table["columns"][:COLUMNS]]
    more = f"<p class=about>{len(table['data'])} rows</p>"
    return _table([head, *([_cell(cell) for cell in row[:COLUMNS]] for row in table["data"][:ROWS])]) + more


def _curves(rows: list[dict[str, Any]]) -> str:
    points = [row for row in rows if "report/left_out" in row]
    names = sorted({key for row in points for key in row if key.startswith("report/curve/")})
    figure = new_figure(11, 3.2)
    axes = figure.subplots()
    for place, name in enumerate(names):
        known = [(row["report/left_out"], row[name]) for row in points if name in row]
        axes.plot(*zip(*known, strict=True), **series(place), label=name.removeprefix("report/"))
    dress(axes, x="report/left_out", y="test error")
    legend(figure)
    return f'<img width="1180" src="{data_address(to_svg(figure).encode(), "image/svg+xml")}">'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
