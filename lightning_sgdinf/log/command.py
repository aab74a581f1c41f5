"""The command ``sgdinf-log``: look at logs, check them, mend them, watch them grow, forecast them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from lightning_sgdinf.errors import ConfigurationError, LogError, UnsupportedRunError
from lightning_sgdinf.extras import require
from lightning_sgdinf.log.export import export
from lightning_sgdinf.log.reader import RunLog
from lightning_sgdinf.log.recovery import recover
from lightning_sgdinf.log.watch import progress, readable_bytes, watch
from lightning_sgdinf.plain_text import printable

_PARTS = {"state": "states", "anchor": "states", "page": "steps", "batch": "batches"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``sgdinf-log``.

    Args:
        arguments: Words after the command's name; those of the process if ``None``.

    Returns:
        0 if all is well, 1 if there is a problem with the log; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(prog="sgdinf-log", description="Look at the log of a training run, or mend it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(_COMMANDS))
    for name, (purpose, _) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name == "plan":
            _add_plan_arguments(command)
            continue
        command.add_argument("path", metavar="PATH", help="the log, a directory")
        if name == "export":
            command.add_argument("target", metavar="FILE", help="HDF5 file to make")
        if name == "watch":
            command.add_argument("--once", action="store_true", help="one line, and no more")
            command.add_argument("--seconds", type=float, default=2.0, help="between two lines (default: 2)")
    chosen = parser.parse_args(arguments)
    try:
        status = _COMMANDS[chosen.command][1](chosen)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        return 0
    except (LogError, ConfigurationError, UnsupportedRunError) as error:
        print(printable(f"sgdinf-log: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _info(chosen: argparse.Namespace) -> int:
    with RunLog.open(chosen.path) as log:
        for line in _description(log):
            print(printable(line))
    return 0


def _description(log: RunLog) -> Iterator[str]:
    header = log.header
    indices = log.state_indices
    yield f"run         {header.run_id}, begun {header.created}"
    numbers = sum(math.prod(shape) for _, shape, _ in header.parameters)
    yield f"model       {header.model}, {numbers:,} trained numbers in {len(header.parameters)} tensors"
    yield f"optimizer   {header.optimizer}, precision {header.precision}"
    yield f"end         {log.end_reason}" + (
        "" if log.finished else " (no state after its last step, which is not counted here)"
    )
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
            part = _PARTS.get(name.split("/")[0].removesuffix("_end"), "headers")
            sizes[part] = sizes.get(part, 0) + size
            stored += size if part == "states" else 0
        raw += segment.plain_bytes
    yield f"size        {readable_bytes(log.size_bytes)}"
    for part, size in sizes.items():
        smaller = f", {raw / stored:.2f} x smaller than plain" if part == "states" else ""
        yield f"  {part:24} {readable_bytes(size)}{smaller}"
    yield f"digest      {log.digest}"


def _verify(chosen: argparse.Namespace) -> int:
    with RunLog.open(chosen.path) as log:
        report = log.verify()
        counted = f"{report.steps} steps and {report.states} states agree with their checksums"
        if report.ok:
            print(printable(f"{log.path}: {counted}" + ("" if log.finished else f"; no final state: {log.end_reason}")))
            return 0
        print(printable(f"{log.path}: {counted}, then: {report.problem}"))
        return 1


def _recover(chosen: argparse.Namespace) -> int:
    report = recover(chosen.path)
    if not report.changed:
        print(printable(f"{chosen.path}: {report.steps} steps, nothing to recover"))
        return 0
    print(printable(f"{chosen.path}: {report.steps} steps; {report.sealed} of them were not sealed, and are now"))
    for path in report.set_aside:
        print(printable(f"{path.name} could not be read and is out of the way now; remove it if nobody can read it"))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    with RunLog.open(chosen.path) as log:
        export(log, chosen.target)
        print(printable(f"{chosen.target}: {len(log)} steps, {len(log.state_indices)} states"))
    return 0


def _watch(chosen: argparse.Namespace) -> int:
    if chosen.once:
        latest = progress(chosen.path)
        print(printable(str(latest)))
    else:
        for latest in watch(chosen.path, seconds=chosen.seconds):
            print(printable(str(latest)), flush=True)
    return 0 if latest.going_on or latest.ended else 1


def _add_plan_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", metavar="MODULE:NAME|PATH", help="a LightningModule, or the log of a short run")
    command.add_argument("--data", metavar="MODULE:NAME", help="its data module, or its training loader")
    command.add_argument("--steps", type=int, required=True, help="optimizer steps of the run")
    command.add_argument("--keep", action="append", default=[], help="a policy to show, too; may be repeated")
    command.add_argument("--codec", default="delta", help="of the states (default: delta)")
    command.add_argument("--timed-steps", type=int, default=5, help="steps of the trial, 0 for bytes only (default: 5)")


def _plan(chosen: argparse.Namespace) -> int:
    # By name: a trial needs the recorder and the replay, which stand above the log.
    planning = require("lightning_sgdinf.planning.command", extra="")
    plan = planning.plan_of(
        chosen.path,
        steps=chosen.steps,
        data=chosen.data,
        keeps=chosen.keep,
        codec=chosen.codec,
        timed_steps=chosen.timed_steps,
    )
    for line in str(plan).splitlines():
        print(printable(line))
    return 0


_COMMANDS: Mapping[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "info": ("what the log holds", _info),
    "verify": ("read everything once, compare with checksums", _verify),
    "watch": ("how far the run is: step, rate, bytes, size at the end", _watch),
    "plan": ("before a run: bytes, write rate, replay seconds and memory, for every policy", _plan),
    "recover": ("seal what a killed run has left; may be interrupted and repeated", _recover),
    "export": ("one plain HDF5 file with standard filters, for other tools", _export),
}


if __name__ == "__main__":
    sys.exit(main())
