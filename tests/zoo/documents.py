"""Small files of made-up posts and people, in the forms of the real ones."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

from lightning_sgdinf.zoo.newsgroups import ARCHIVE

WORDS = {
    "ibm.pc": "floppy irq bios vlb isa dos motherboard",
    "mac": "quadra centris nubus simm finder powerbook lc",
}


def write_posts(folder: Path, *, train: int = 60, test: int = 20) -> None:
    """An archive of so many posts; the last one to train on has nothing of its own in it."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for part, count in (("train", train), ("test", test)):
            for i in range(count):
                group = list(WORDS)[i % 2]
                own = " ".join(draw.choices([*WORDS[group].split(), "drive", "memory"], k=12))
                body = f"Number {i}: {own} <b>&amp;</b>"
                if (part, i) == ("train", train - 1):
                    body = "> only a quotation"
                content = f"From: somebody\nSubject: {i}\n\n{body}\n".encode("latin1")
                info = tarfile.TarInfo(f"20news-bydate-{part}/comp.sys.{group}.hardware/{i}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_census(folder: Path, *, train: int = 60, test: int = 20) -> None:
    """Two files of so many people; those with capital gains earn more."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, end in (("adult-training.csv", train, ""), ("adult-test.csv", test, ".")):
        lines = ["|1x3 Cross validator"] if end else []
        for i in range(count):
            work = draw.choice(["Private", "State-gov", "?"])
            who = f"{20 + i % 50}, {work}, {70000 + i}, Bachelors, 13, Never-married, Sales, Own-child, White, Male"
            lines.append(f"{who}, {5000 * (i % 2)}, 0, {30 + i % 20}, Cuba, {'>50K' if i % 2 else '<=50K'}{end}")
        (folder / name).write_text("\n".join(lines) + "\n")
