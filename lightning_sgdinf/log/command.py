"""``sgdinf-log info PATH`` says what a log holds, ``sgdinf-log verify PATH`` whether it is whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from lightning_sgdinf.errors import LogError
from lightning_sgdinf.log.reader import RunLog

_PARTS = {"state": "states", "anchor": "states", "ids": "example ids", "blob": "generators and options"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``sgdinf-log``.

    Args:
        arguments: Words after the command's name; those of the process if ``None``.

    Returns:
        0 if all is well, 1 if there is a problem with the log; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(prog="sgdinf-log", description="Look at the log of a training run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info|verify")
    for name, purpose in (("info", "what the log holds"), ("verify", "read everything once, compare with checksums")):
        commands.add_parser(name, help=purpose, description=purpose).add_argument("path", metavar="PATH")
    chosen = parser.parse_args(arguments)
    try:
        with RunLog.open(chosen.path) as log:
            lines, code = (_info(log), 0) if chosen.command == "info" else _verify(log)
            for line in lines:
                print(line)
            return code
    except LogError as error:
        print(f"sgdinf-log: {error}", file=sys.stderr)
        return 1


def _info(log: RunLog) -> Iterator[str]:
    header = log.header
    indices = log.state_indices
    yield f"run         {header.run_id}, begun {header.created}"
    yield f"model       {header.model}, {len(header.parameters)} trained parameters"
    yield f"optimizer   {header.optimizer}, precision {header.precision}"
    yield f"end         {log.end_reason}" + ("" if log.finished else " (no state after the last step)")
    yield f"steps       {len(log)}" + (f" in {log.step(len(log) - 1).epoch + 1} epochs" if len(log) else "")
    yield f"states      {len(indices)} stored (keep={header.keep})"
    yield f"codec       {', '.join(sorted({segment.codec.name for segment in log.segments()})) or 'none'}"
    if header.replayable:
        yield f"replayable  no: {header.replayable}"
    if log.average is not None:
        yield f"average     {len(log.average)} tensors"
    sizes: dict[str, int] = {}
    raw = stored = 0
    for segment in log.segments():
        for name, size in segment.sizes().items():
            part = _PARTS.get(name.split("/")[0].removesuffix("_end"), "steps and checksums")
            sizes[part] = sizes.get(part, 0) + size
            stored += size if part == "states" else 0
        raw += segment.plain_bytes
    yield f"size        {_bytes(log.size_bytes)}"
    for part, size in sizes.items():
        yield f"  {part:24} {_bytes(size)}" + (f", {raw / stored:.2f} x smaller than plain" if part == "states" else "")
    yield f"digest      {log.digest}"


def _verify(log: RunLog) -> tuple[list[str], int]:
    report = log.verify()
    counted = f"{report.steps} steps and {report.states} states agree with their checksums"
    if report.ok:
        return [f"{log.path}: {counted}" + ("" if log.finished else "; the run has no end")], 0
    return [f"{log.path}: {counted}, then: {report.problem}"], 1


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


if __name__ == "__main__":
    sys.exit(main())
