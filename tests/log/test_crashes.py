"""What is left when a process dies, the disk is full, or someone forks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lightning_sgdinf.errors import LogNotFoundError
from lightning_sgdinf.log import RunLog
from tests.log.cases import assert_same_state, described, make_state, make_step, overwrite, run_script, write_run


def assert_prefix(log: RunLog, at_least: int) -> None:
    """Every step and state of the log is right, and there are enough of them."""
    assert len(log) + 1 >= at_least
    for step in log.steps(0, len(log)):
        assert described(step) == described(make_step(step.index))
    for index in log.state_indices[::-1]:
        assert_same_state(log.state(int(index)), make_state(int(index)))


KILLED = """
import os, shutil, signal
from pathlib import Path
for codec in ("none", "delta"):
    path = Path(sys.argv[1], codec)
    # Between two segments there is none that is alive: then the next writer is killed.
    while not any(path.glob("live-*")):
        shutil.rmtree(path, ignore_errors=True)
        if os.fork() == 0:
            writer = cases.write_run(path, 45, finish=False, codec=codec, segment_bytes=1)
            for t in range(45, 50):
                cases.put(writer, cases.make_state(t), cases.make_step(t))
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with logs whose writers were killed, named by codec."""
    directory = tmp_path_factory.mktemp("killed")
    done = run_script(KILLED, directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.parametrize("codec", ["none", "delta"])
def test_killed_writer_loses_only_what_was_not_flushed(killed: Path, codec: str) -> None:
    path = killed / codec
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    assert any(name.startswith("live-") for name in before)
    with RunLog.open(path) as log:
        assert not log.finished
        assert_prefix(log, at_least=45)
        assert log.verify().ok
        assert log.state_indices.tolist() == list(range(len(log) + 1))
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before, "reading changed the log"


def test_a_live_segment_cut_or_changed_anywhere_gives_a_right_prefix(killed: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(killed / "delta", path)
    live = next(path.glob("live-*"))
    first, whole = int(live.stem.split("-")[1]), live.read_bytes()
    rng, lengths = np.random.default_rng(0), set()
    for size in [0, 1, 47, 48, *np.linspace(100, len(whole), 6).astype(int).tolist()]:
        overwrite(live, whole[:size])
        with RunLog.open(path) as log:
            assert_prefix(log, at_least=first)
            lengths.add(len(log))
    for place in rng.integers(0, len(whole), 8).tolist():
        overwrite(live, whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with RunLog.open(path) as log:
            assert_prefix(log, at_least=first)
    assert min(lengths) == first - 1, "the test is degenerate"
    assert max(lengths) >= 44, "the test is degenerate"


FULL = """
import os, resource, warnings
from pathlib import Path
from lightning_sgdinf.errors import LogWriteError
unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
def state(t):
    return cases.make_state(t, size=20_000)
for when_full in ("raise", "stop_logging"):
    path = Path(sys.argv[1], when_full)
    writer = cases.write_run(path, 20, state=state, finish=False, codec="none", when_full=when_full)
    size = max(p.stat().st_size for p in path.glob("live-*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300_000, resource.RLIM_INFINITY))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for t in range(20, 100):
                cases.put(writer, state(t), cases.make_step(t))
                if t % 16 == 0:
                    writer.flush()
            layout = cases.Layout.of(state(100))
            writer.finish(layout, layout.empty())
            print("went on", bool(writer.stopped), len(caught))
        except LogWriteError as error:
            print("raised", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

# The segment still fits, the state at the end does not.
path = Path(sys.argv[1], "end")
writer = cases.write_run(path, 20, state=state, keep=lambda t: False, finish=False)
layout = cases.Layout.of(state(20))
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))
try:
    writer.finish(layout, layout.empty())
except LogWriteError as error:
    print("raised", error)
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A directory with logs whose disk was full, named by ``when_full``, and what their writer said."""
    directory = tmp_path_factory.mktemp("filled")
    done = run_script(FULL, directory)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return directory, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("place", "when_full", "said"), [(0, "raise", "raised"), (1, "stop_logging", "went on True 1")]
)
def test_full_disk_keeps_what_was_flushed(
    filled: tuple[Path, list[str]], place: int, when_full: str, said: str
) -> None:
    assert filled[1][place].startswith(said), filled[1]
    with RunLog.open(filled[0] / when_full) as log:
        assert not log.finished
        assert len(log) + 1 >= 20
        for index in log.state_indices[::-1]:
            assert_same_state(log.state(int(index)), make_state(int(index), size=20_000))
        assert log.verify().ok


def test_full_disk_at_the_very_end(filled: tuple[Path, list[str]]) -> None:
    assert filled[1][2].startswith("raised"), filled[1]
    with RunLog.open(filled[0] / "end") as log:
        assert (log.finished, len(log)) == (False, 19)
        assert log.verify().ok
    assert not list((filled[0] / "end").glob("tmp-*"))


FORKED = """
import os
writer = cases.write_run(sys.argv[1], 20, finish=False)
child = os.fork()
if child == 0:
    from lightning_sgdinf.errors import LogWriteError
    try:
        cases.put(writer, cases.make_state(20), cases.make_step(20))
    except LogWriteError as error:
        print("refused", flush=True)
    sys.exit(0)      # runs every exit handler, those of HDF5 too
assert os.waitpid(child, 0)[1] == 0
for t in range(20, 40):
    cases.put(writer, cases.make_state(t), cases.make_step(t))
# and the process ends without finish: what was put is sealed
"""


def test_forks_and_a_missing_finish_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "run.tlog"
    done = run_script(FORKED, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"]
    with RunLog.open(path) as log:
        assert not log.finished
        assert "ended before the run was finished" in log.end_reason
        assert_prefix(log, at_least=40)


def test_living_writer_can_be_watched_but_its_segment_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.tlog"
    writer = write_run(path, 5, finish=False)
    with pytest.raises(LogNotFoundError, match="no complete step"):
        RunLog.open(path)
    for_more = write_run(tmp_path / "more.tlog", 20, finish=False, segment_bytes=1)
    with RunLog.open(tmp_path / "more.tlog") as log:
        assert_prefix(log, at_least=16)
        assert len(log) == 15
    writer.abandon("enough")
    for_more.abandon("enough")
    with RunLog.open(path) as log:
        assert log.end_reason == "enough"
        assert_prefix(log, at_least=5)
