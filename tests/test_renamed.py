"""Names that have moved work for one more release, and say what they are called now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sgdinf.log import Header, LogWriter
from lightning_sgdinf.record.writer import take_buffers_of
from lightning_sgdinf.state import Layout, ModelState

LAYOUT = Layout.of(ModelState(params={"weight": torch.zeros(3)}))


def old_writer_method(folder: Path) -> Any:
    writer = LogWriter(folder / "run", header=Header(run_id="run", created="", model="", optimizer="", parameters=()))
    try:
        return writer.lanes(LAYOUT)
    finally:
        writer.abandon("enough")


def old_writer_protocol(folder: Path) -> Any:
    class Lanes:
        def lanes(self, layout: Layout) -> dict[str, torch.Tensor]:
            return layout.empty()

    return take_buffers_of(Lanes())(LAYOUT)


CALLS: dict[str, tuple[Callable[[Path], Any], str, Callable[[Any], bool]]] = {
    "LogWriter.lanes": (old_writer_method, "LogWriter.take_buffers", lambda given: given["float32"].shape == (3,)),
    "Writer.lanes": (old_writer_protocol, "Writer.take_buffers", lambda given: given["float32"].shape == (3,)),
}
"""Old name of a method to what types it, the new name, and what it must give."""


@pytest.mark.parametrize("old", CALLS)
def test_old_methods_work_and_name_the_new_ones(old: str, tmp_path: Path) -> None:
    call, new, right = CALLS[old]
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        given = call(tmp_path)
    assert right(given)
