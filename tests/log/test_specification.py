"""What is written is what docs/format/log-v1.md says: an independent reader reads it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sgdinf import random_state
from lightning_sgdinf.log import RunLog, Step
from lightning_sgdinf.state import ModelState
from tests.log.cases import make_header, make_state, make_step, write_run
from tests.log.plain_reader import PlainLog

GOLDEN_LOGS = Path(__file__).parent / "golden" / "v1"
CODECS = ("none", "delta", "small", "delta2")
GOLDEN_DIGEST = "1a1165af44e26014fb7b1847f7370e512eeef76dcfbcb749bab84bed9810de62"


def raw(state: ModelState) -> dict[tuple[str, str, str], bytes]:
    """Bytes of each tensor of a state."""
    return {
        (part, name, key): np.array(value.contiguous().reshape(-1).untyped_storage().tolist(), np.uint8).tobytes()
        for part, name, key, value in state.map(lambda v: v.clone()).items()
    }


def assert_follows_specification(
    path: Path, steps: int, state: Callable[[int], ModelState], step: Callable[[int], Step] = make_step
) -> PlainLog:
    plain = PlainLog(path)
    with RunLog.open(path) as log:
        assert plain.digest == log.digest
        assert sorted(plain.states) == log.state_indices.tolist()
        for index in range(steps + 1):
            assert plain.state_crcs[index] == log.state_checksum(index)
        assert plain.average == {"w": [0.5, 0.5]}
        for index in plain.states:
            assert plain.states[index] == raw(log.state(index)) == raw(state(index))
        for plain_step, found in zip(plain.steps, log.steps(0, steps), strict=True):
            expected = step(found.index)
            assert plain_step["ids"] == expected.example_ids.tolist()
            assert plain_step["epoch"] == found.epoch == expected.epoch
            assert plain_step["frame"]["accumulation"] == expected.accumulation
            assert plain_step["frame"]["groups"][0]["params"] == list(expected.groups[0].params)
            rate = plain_step["options"][0]["lr"]
            assert (float(rate["$float"]) if isinstance(rate, dict) else rate) == pytest.approx(
                expected.groups[0].options["lr"], abs=0, rel=0, nan_ok=True
            )
            draw = plain_step["micro_batches"][0]["draws"][0]
            assert draw["n"] == len(expected.micro_batches[0].draws[0].example_ids)
            random = {name: plain_step["blobs"][place] for name, place in draw["random"].items()}
            assert random == expected.micro_batches[0].draws[0].random
    return plain


@pytest.mark.parametrize("codec", [*CODECS, "auto"])
def test_an_independent_reader_reads_what_is_written(tmp_path: Path, codec: str) -> None:
    def state(t: int) -> ModelState:
        return make_state(t, momentum=t > 2, size=40 if t < 20 else 4000)

    write_run(tmp_path / "run", 25, state=state, keep=lambda t: t % 2 == 0, codec=codec, segment_bytes=1)
    assert_follows_specification(tmp_path / "run", 25, state)


def test_generator_states_in_a_stream(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    steps = []
    for t in range(30):
        step = make_step(t)
        draw = replace(step.micro_batches[0].draws[0], random=random_state.capture())
        steps.append(replace(step, micro_batches=(replace(step.micro_batches[0], draws=(draw,)),)))
        torch.rand(t * 40)
        np.random.rand(100 * (t % 4))
        random.gauss(0.0, 1.0)
    write_run(tmp_path / "run", 30, step=steps.__getitem__, keep=lambda t: False)
    assert_follows_specification(tmp_path / "run", 30, make_state, steps.__getitem__)
    assert sum(p.stat().st_size for p in (tmp_path / "run").glob("seg-*")) < 40_000, "nothing is shared"


@pytest.mark.parametrize("codec", CODECS)
def test_the_golden_logs_of_version_1_stay_readable(codec: str) -> None:
    path = GOLDEN_LOGS / codec
    assert sum(p.stat().st_size for p in path.iterdir()) < 100_000
    plain = assert_follows_specification(path, 6, golden_state, golden_step)
    assert plain.codecs == {codec}
    with RunLog.open(path) as log:
        assert log.digest == GOLDEN_DIGEST
        assert log.header.model == make_header().model
        assert log.verify().ok


def golden_state(t: int) -> ModelState:
    return make_state(t, size=520)


def golden_step(t: int) -> Step:
    """With the state of a twister that moves on."""
    generator = np.random.RandomState(t // 3)
    generator.rand(700 * t)
    _, keys, position, *_ = generator.get_state()
    state = np.asarray(keys, "<u4").tobytes() + struct.pack("<iid", position, 0, 0.0)
    step = make_step(t)
    draw = replace(step.micro_batches[0].draws[0], random={"numpy": state})
    return replace(step, micro_batches=(replace(step.micro_batches[0], draws=(draw,)), *step.micro_batches[1:]))


def write_golden() -> None:
    """How the golden logs were made, once, by the first release."""
    for codec in CODECS:
        write_run(
            GOLDEN_LOGS / codec, 6, state=golden_state, step=golden_step, keep=lambda t: t != 2, codec=codec,
            overwrite=True,
        )  # fmt: skip
        with RunLog.open(GOLDEN_LOGS / codec) as log:
            print(codec, log.digest)


if __name__ == "__main__":
    write_golden()
