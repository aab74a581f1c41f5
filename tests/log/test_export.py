"""An exported log, read with h5py alone."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lightning_sgdinf.errors import LogExistsError, LogWriteError
from lightning_sgdinf.log import RunLog
from lightning_sgdinf.log.export import export
from lightning_sgdinf.state import ModelState
from tests.log.cases import make_header, make_state, make_step, run_python, write_run

STEPS = 9


def state(t: int) -> ModelState:
    """Momentum comes with the second state and changes its shape in the seventh."""
    made = make_state(t, momentum=t > 0)
    if t < 6:
        return made
    momentum = torch.full((2, 2), float(t))
    return ModelState(
        params=made.params, buffers=made.buffers, optimizer={"w": made.optimizer["w"] | {"momentum_buffer": momentum}}
    )


def keep(t: int) -> bool:
    return t != 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    write_run(directory / "run", STEPS, state=state, keep=keep, step=lambda t: make_step(t, groups=1 if t < 3 else 2))
    with RunLog.open(directory / "run") as log:
        export(log, directory / "plain.h5")
    return directory / "plain.h5"


def test_states(exported: Path) -> None:
    stored = [t for t in range(STEPS + 1) if keep(t)]
    with h5py.File(exported) as file:
        states = file["states"]
        assert states["index"][()].tolist() == stored
        for row, t in enumerate(stored):
            assert np.array_equal(states["param/w"][row], state(t).params["w"].numpy())
            assert states["param/größe"][row] == state(t).params["größe"].item()
            assert states["buffer/batches"][row] == t
            assert states["buffer/mask"][row].tolist() == state(t).buffers["mask"].tolist()
            half = torch.from_numpy(states["buffer/half"][row].astype(np.int16)).view(torch.bfloat16)
            assert torch.equal(half, state(t).buffers["half"])
        assert states["buffer/half"].attrs["dtype"] == "bfloat16"
        assert states["buffer/nothing"].shape == (len(stored), 0)
        first, second = states["optimizer/w/momentum_buffer"], states["optimizer/w/momentum_buffer@5"]
        assert (first.attrs["first_row"], len(first)) == (1, 4)
        assert (second.attrs["first_row"], second.shape) == (5, (4, 2, 2))
        assert second[0, 0, 0] == stored[5]
        assert file["average/w"][0].tolist() == [0.5, 0.5]


def test_steps(exported: Path) -> None:
    with h5py.File(exported) as file, RunLog.open(exported.with_name("run")) as log:
        steps, ends = file["steps"], [0, *file["steps/ids_end"][()]]
        assert file.attrs["format"] == "sgdinf-export/1"
        assert file.attrs["digest"] == log.digest
        assert json.loads(file["header"][()])["model"] == make_header().model
        assert steps["state_crc"][()].tolist() == [log.state_checksum(t) for t in range(STEPS + 1)]
        assert steps["lr"].shape == (STEPS, 2)
        assert np.isnan(steps["lr"][:3, 1]).all()
        for t in range(STEPS):
            expected = make_step(t, groups=1 if t < 3 else 2)
            assert steps["ids"][ends[t] : ends[t + 1]].tolist() == expected.example_ids.tolist()
            assert steps["epoch"][t] == expected.epoch
            assert steps["global_step"][t] == expected.global_step
            assert steps["loss"][t] == pytest.approx(expected.loss, abs=0, rel=0, nan_ok=True)
            assert steps["lr"][t, 0] == pytest.approx(expected.learning_rates[0], abs=0, rel=0, nan_ok=True)
            document = json.loads(steps["document"][t])
            assert document["groups"][0]["params"] == list(expected.groups[0].params)
            assert document["changed"] == list(expected.changed)


def test_no_plugin_is_needed(exported: Path) -> None:
    """In a process that has none: only filters that come with HDF5."""
    script = """
import sys
import h5py
def look(name, item):
    if isinstance(item, h5py.Dataset):
        item[()]
        print(item.compression, item.id.get_create_plist().get_nfilters())
with h5py.File(sys.argv[1]) as file:
    file.visititems(look)
"""
    done = run_python(script, exported)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} <= {"None", "gzip"}


def test_what_is_there_is_not_replaced(exported: Path, tmp_path: Path) -> None:
    with RunLog.open(exported.with_name("run")) as log:
        with pytest.raises(LogExistsError):
            export(log, exported)
        with pytest.raises(LogWriteError, match="make its directory"):
            export(log, tmp_path / "nowhere" / "plain.h5")
    assert not list(tmp_path.iterdir())
