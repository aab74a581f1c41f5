"""``sgdinf init``: a folder with a data module and a model of one's own, and the configuration that names them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

TEMPLATE = Path(__file__).with_name("template")


def init(arguments: Sequence[str]) -> int:
    """Write the folder; nothing that is there is written over.

    Args:
        arguments: Of the command line: the folder.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="sgdinf init", description="Write a folder with a data module, a model and their configuration, to change."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("my_project"), help="to make; my_project if not given"
    )
    folder: Path = parser.parse_args(arguments).folder
    files = {
        path.relative_to(TEMPLATE).as_posix().removesuffix(".txt"): path  # a template is no module of this package
        for path in sorted(TEMPLATE.rglob("*"))
        if path.suffix in (".txt", ".yaml")
    }
    present = [str(folder / name) for name in files if (folder / name).exists()]
    if present:
        print(
            f"sgdinf init: {', '.join(present)} is there already and was left as it is; give another folder",
            file=sys.stderr,
        )
        return 1
    try:
        for name, path in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        print(f"sgdinf init: {folder}: {error.strerror}; give a folder that can be written to", file=sys.stderr)
        return 1
    print(f"Wrote {', '.join(files)} to {folder}. Now:\n")
    print(f"    cd {folder}\n    sgdinf --config-dir conf experiment=wine\n")
    return 0
