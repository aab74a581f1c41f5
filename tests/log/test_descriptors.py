"""A forked process lets go of the log's file, and of nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from tests.log.cases import write_run


def test_a_descriptor_that_belongs_to_another_file_by_now_is_left_alone(tmp_path: Path) -> None:
    # The writer thread closes a segment, its descriptor goes to a pipe, and a process is forked before the thread
    # has noted that the segment is gone.
    writer = write_run(tmp_path / "run.tlog", 5, finish=False)
    writer.flush()
    store = writer._store
    assert store._file is not None
    read_end, write_end = os.pipe()
    file = store._file
    store._file = (read_end, file[1])
    store.disown()
    os.write(write_end, b"x")
    assert os.read(read_end, 1) == b"x"
    os.close(read_end)
    store.disown()  # not even open
    os.close(write_end)
    store._file = file
    writer.abandon("enough")
