"""Reads whatever it is told to read, and says what came of it; never in the process that asks.

python -m tests.log.faults.victim        # reads paths from its input, one a line; answers one a line
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import traceback
from pathlib import Path

FORBIDDEN = (
    "exec", "compile", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile", "subprocess.Popen",
    "pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect", "socket.bind", "pty.spawn", "os.remove",
    "os.rename", "os.rmdir", "os.truncate", "os.chmod",
)  # fmt: skip
"""Events of Python's audit that reading a log never leads to, unless the log makes it."""

SECONDS = 120  # without an answer: it hangs


class Died(Exception):
    """The victim did not answer."""


class Victim:
    """A process that reads logs.

    Args:
        prelude: Python text that makes ``tests`` and the package importable.
    """

    def __init__(self, prelude: str) -> None:
        self._text = f"{prelude}\nfrom tests.log.faults import victim\nvictim.serve()\n"
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> str:
        """``"right"``, or the name of the error that reading raised.

        Raises:
            Died: The process ended, or did not answer in time; or something else was wrong.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        deadline = time.monotonic() + SECONDS
        while not select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
            if time.monotonic() >= deadline:
                self.stop()
                raise Died(f"no answer in {SECONDS} s")
        answer = process.stdout.readline().strip()
        if not answer:
            self.stop()
            raise Died(f"the process ended with {process.returncode}")
        if answer.startswith("!"):
            raise Died(answer)
        return answer

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # nothing, if it has ended by itself
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._text],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        return self._process


def serve() -> None:
    """Answer until the input ends."""
    import resource
    import tempfile

    from lightning_sgdinf.errors import LogError
    from lightning_sgdinf.log.reader import RunLog

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    tempfile.gettempdir()  # tries whether it can be written
    done: list[str] = []
    watching = [False]

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if not watching[0]:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        temporary = any("/tmp-" in str(a) for a in arguments) or (event == "os.remove" and arguments[1] != -1)
        if (event in FORBIDDEN or writes) and not temporary:
            done.append(f"{event} {arguments[:1]!r:.80}")

    sys.addaudithook(audit)
    print("ready", flush=True)
    for line in sys.stdin:
        watching[0] = True
        try:
            read_all(RunLog, Path(line.strip()))
            answer = "right"
        except LogError as error:
            answer = type(error).__name__
        except BaseException as error:
            watching[0] = False
            traceback.print_exc()
            answer = f"!{type(error).__name__}: {error!r:.300}".replace("\n", " ")
        watching[0] = False
        if done:
            answer = f"!did {done}"
            done.clear()
        print(answer, flush=True)


def read_all(kind: type, path: Path) -> None:
    """Everything that can be asked of a log."""
    with kind.open(path) as log:
        report = log.verify()
        count = min(len(log), 1000)
        for step in log.steps(count, 0):
            for micro in step.micro_batches:
                for draw in micro.draws:
                    if draw.batch is not None:
                        draw.batch()
        for index in log.state_indices[-50:].tolist():
            log.state(index)
            log.state_checksum(index)
        log.digest
        log.size_bytes
        for segment in log.segments():
            segment.sizes()
        if not report.ok:
            from lightning_sgdinf.errors import LogCorruptError

            raise LogCorruptError(report.problem)
