"""Files whose objects are made in memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from lightning_sgdinf.log.hdf5 import skeleton


def test_two_logs_of_one_process_make_files_of_the_same_name_at_once(tmp_path: Path) -> None:
    """Each log counts its segments from the same number."""
    paths = [tmp_path / log / "segment-000000.h5" for log in "ab"]
    for path in paths:
        path.parent.mkdir()
    with skeleton(paths[0], "first") as first, skeleton(paths[1], "second") as second:
        first["numbers"] = np.arange(3)
        second["numbers"] = np.arange(4)
    for path, format_name, length in zip(paths, ("first", "second"), (3, 4), strict=True):
        with h5py.File(path) as file:
            assert file.attrs["format"] == format_name
            assert len(np.asarray(file["numbers"])) == length
