"""Forecasts of a log's size, compared with logs that were really written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_sgdinf.log import RunLog, expected_size
from lightning_sgdinf.log.codec_choice import stored_bytes
from lightning_sgdinf.log.codecs import CODECS
from lightning_sgdinf.log.expected_size import costs_of_layout, costs_of_log
from lightning_sgdinf.state import Layout, ModelState
from tests.log.cases import write_run

WORDS, TRIAL, STEPS = 3000, 6, 60


def trained(t: int) -> ModelState:
    """State ``t``: a descent with noise, whose momentum is a second tensor."""
    generator = torch.Generator().manual_seed(0)
    start, slope = torch.randn(2, WORDS, generator=generator)
    noise = torch.randn(STEPS + 1, WORDS, generator=generator)
    moved = start - 1e-3 * (t * slope + noise[:t].sum(0))
    return ModelState(params={"w": moved}, optimizer={"w": {"momentum_buffer": slope + 0.1 * noise[t]}})


@pytest.mark.parametrize("codec", [*CODECS, "auto"])
def test_the_size_of_a_long_run_from_a_short_one(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With segments as small as they get, so that anchors count as for states of hundreds of megabytes."""
    monkeypatch.setattr(expected_size, "SEGMENT_BYTES", 1)
    write_run(tmp_path / "trial", TRIAL, state=trained, codec=codec)
    with RunLog.open(tmp_path / "trial") as log:
        costs = costs_of_log(log, codec)
    for name, distance in (("all", 1), ("some", 10)):
        write_run(
            tmp_path / name, STEPS, state=trained, codec=codec, segment_bytes=1, keep=lambda t, d=distance: t % d == 0
        )
        with RunLog.open(tmp_path / name) as log:
            forecast = costs.size(STEPS, len(log.state_indices) - 1, distance)
            assert forecast == pytest.approx(log.size_bytes, rel=0.12), (codec, name)


def test_what_is_far_apart_is_never_larger_than_plain(tmp_path: Path) -> None:
    write_run(tmp_path / "trial", TRIAL, state=trained)
    with RunLog.open(tmp_path / "trial") as log:
        costs = costs_of_log(log, "delta")
    rows = [costs.row(distance) for distance in (1, 2, 3, 4, 8, 1000, 10**9)]
    assert rows == sorted(rows)
    assert rows[0] < 0.9 * costs.plain < rows[-1] <= 1.01 * costs.plain


def test_without_states_nothing_is_taken_to_get_smaller() -> None:
    layout = Layout.of(trained(3))
    costs = costs_of_layout(layout, "delta")
    assert costs.plain == 2 * 4 * WORDS
    assert costs.size(10, 10, 1) == (9 + 2 + 1) * costs.plain  # rows, anchors, final state


def test_a_large_state_is_tried_in_all_its_parts() -> None:
    """An embedding of which nothing moves, in front, is no measure of the layers behind it."""
    words, still = 1 << 22, 1 << 21
    before = torch.randint(0, 1 << 31, (words,), generator=torch.Generator().manual_seed(0)).numpy().astype("<u4")
    after = before.copy()
    after[still:] = before[still:][::-1]
    size = stored_bytes(CODECS["delta"], [{"float32": before}, {"float32": after}])
    assert size == pytest.approx(4 * (words - still), rel=0.05)
