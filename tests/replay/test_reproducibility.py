"""The message when a rebuilt state has other bits than the recorded one."""

from __future__ import annotations

import pytest
import torch

from lightning_sgdinf.log.records import Header
from lightning_sgdinf.replay.reproducibility import why_bits_differ


def header(**environment: object) -> Header:
    now = {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    return Header(run_id="r", created="", model="m", optimizer="o", parameters=(), environment={**now, **environment})


def test_the_recorded_machine_and_this_one_are_named() -> None:
    said = why_bits_differ(header(threads=97, cpu_capability="DREAM512", torch="1.0"))
    assert f"threads 97 (now {torch.get_num_threads()})" in said
    assert f"instruction set DREAM512 (now {torch.backends.cpu.get_cpu_capability()})" in said
    assert f"torch 1.0 (now {torch.__version__})" in said


@pytest.mark.parametrize(
    ("environment", "way_out"),
    [
        ({"threads": 97}, "Call torch.set_num_threads(97) before, or let states be rebuilt but for rounding"),
        ({"cpu_capability": "DREAM512"}, "on a machine and with a torch like those of training"),
        ({"threads": 97, "torch": "1.0"}, "on a machine and with a torch like those of training"),
        ({}, "operations that are not deterministic"),
    ],
)
def test_the_way_out_fits(environment: dict[str, object], way_out: str) -> None:
    said = why_bits_differ(header(**environment))
    assert way_out in said
    assert "rebuild='close'" in said
    assert "keep='every_step'" in said


def test_a_header_without_the_machine_is_no_trouble() -> None:
    empty = Header(run_id="r", created="", model="m", optimizer="o", parameters=())
    assert "threads not recorded" in why_bits_differ(empty)
