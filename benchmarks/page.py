"""How large the report of a large training set is, and how fast a browser opens and scrolls it.

::

    python benchmarks/page.py --data-dir DATA            # 50,000 images of Fashion-MNIST
    python benchmarks/page.py --kind text --examples 5000

Needs playwright and a Chromium on the PATH. Times are of the machine it runs on, in a window of 1280 x 900 pixels;
processor times are of the page's main thread alone, which other programs at work beside it do not lengthen.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lightning_sgdinf.report import Example, Rendered, ReportData, write_page
from lightning_sgdinf.scores import Scores

EPOCHS = 20
SCROLL = """async (pixels) => {
  const list = document.getElementById("x-list");
  const times = [];
  let before = performance.now();
  for (let i = 0; i < 240; i++) {
    list.scrollTop += pixels;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - before);
    before = now;
  }
  return times.slice(5);
}"""


def images(data_dir: Path, name: str, count: int) -> list[tuple[np.ndarray, int]]:
    from lightning_sgdinf.zoo import Mnist

    pool, _ = Mnist(data_dir, variant=name, download=False).read()
    bytes_ = pool.images if pool.images.dtype == torch.uint8 else (pool.images * 255).round().to(torch.uint8)
    return [(image.numpy(), int(label)) for image, label in zip(bytes_[:count], pool.labels[:count], strict=True)]


def coloured(count: int) -> list[tuple[np.ndarray, int]]:
    """Smooth random colours with some noise, harder to compress than photographs."""
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (count, 5, 5, 3), dtype=np.uint8).repeat(7, 1).repeat(7, 2)[:, :32, :32]
    noise = random.integers(0, 24, small.shape, dtype=np.uint8)
    return [(np.minimum(image // 2 + n, 255), i % 10) for i, (image, n) in enumerate(zip(small, noise, strict=True))]


def texts(count: int) -> list[tuple[str, int]]:
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 10))) for _ in range(20_000)])
    return [(" ".join(random.choice(words, random.integers(20, 400))), i % 2) for i in range(count)]


def report(items: list, count: int) -> ReportData:
    random = np.random.default_rng(1)
    per_epoch = torch.tensor(random.standard_t(3, (EPOCHS, count, 1)) * 1e-4)
    scores = Scores(values=per_epoch.sum(0), queries=("mean validation loss",), per_epoch=per_epoch)
    others = {
        name: Scores(values=scores.values + torch.tensor(random.normal(0, spread, (count, 1))), queries=scores.queries)
        for name, spread in (("last_epochs", 5e-4), ("loss", 5e-3), ("random", 1))
    }
    names = tuple(f"loss of validation example {i}" for i in range(12))
    single = Scores(values=torch.tensor(random.standard_t(3, (count, 12))), queries=names)
    return ReportData(
        title="A large report",
        scores=scores,
        examples=Rendered(items),
        compared=others,
        single=single,
        held_out={name: Example(label=str(i)) for i, name in enumerate(names)},
        corrupt=frozenset(range(0, count, 10)),
    )


def measure(page_file: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def busy() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

        page.goto(page_file.as_uri(), wait_until="commit")
        page.wait_for_function("() => globalThis.sgdinf")
        ready = page.evaluate("() => sgdinf.ready.then(() => performance.now())")
        paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
        times = {"ready": ready / 1000, "ready busy": busy(), "first paint": paint / 1000}
        page.locator("#x-list").scroll_into_view_if_needed()
        for name, pixels in (("slow", 40), ("fast", 3000)):
            before = busy()
            frames = page.evaluate(SCROLL, pixels)
            times |= {f"{name} median": np.median(frames), f"{name} 95 %": np.percentile(frames, 95)}
            times[f"{name} busy"] = 1000 * (busy() - before) / (len(frames) + 5)
        before, began = busy(), time.perf_counter()
        page.fill("#x-search", "9")
        page.wait_for_function("() => document.getElementById('x-count').textContent.includes('of')")
        times |= {"search": time.perf_counter() - began, "search busy": busy() - before}
        browser.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--kind", choices=("fashion-mnist", "mnist", "colour", "text"), default="fashion-mnist")
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--keep", type=Path, help="keep the page there")
    arguments = parser.parse_args()
    count = arguments.examples
    if arguments.kind == "text":
        items: list = texts(count)
    elif arguments.kind == "colour":
        items = coloured(count)
    else:
        items = images(arguments.data_dir, arguments.kind, count)
    data = report(items, count)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = write_page(data, arguments.keep or Path(folder) / "page.html")
        written = time.perf_counter() - began
        found = measure(path)
        size = path.stat().st_size / 1e6
    print("| examples | written in s | MB | first paint s | usable after s | of it busy s | search s | of it busy s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    names = ("first paint", "ready", "ready busy", "search", "search busy")
    print(
        f"| {count:,} {arguments.kind} | {written:.1f} | {size:.1f} |",
        " | ".join(f"{found[n]:.2f}" for n in names),
        "|\n",
    )
    print("| scrolling | frame, median ms | frame, 95 % ms | busy per frame ms |\n| --- | ---: | ---: | ---: |")
    for name in ("slow", "fast"):
        print(f"| {name} | {found[f'{name} median']:.1f} | {found[f'{name} 95 %']:.1f} | {found[f'{name} busy']:.2f} |")


if __name__ == "__main__":
    main()
