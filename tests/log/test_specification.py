"""What is written is what docs/format/log-v1.md says: an independent reader reads it."""

from __future__ import annotations

import io
import random
import shutil
import struct
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lightning_sgdinf import random_state
from lightning_sgdinf.log import RunLog, Step
from lightning_sgdinf.log.batch_bytes import decode_batch, encode_batch
from lightning_sgdinf.state import ModelState
from tests.log.cases import described, make_header, make_state, make_step, write_run
from tests.log.plain_reader import PlainLeft, PlainLog, mended, pages

GOLDEN_LOGS = Path(__file__).parent / "golden" / "v1"
CODECS = ("none", "delta", "small", "delta2")
GOLDEN_DIGEST = "916f34c4b8e747e962080189d06af4dec9214a14994d3e25320d43b4e8783bc9"


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
        for plain_step, recorded in zip(plain.steps, log.steps(0, steps), strict=True):
            expected = step(recorded.index)
            assert plain_step["ids"] == expected.example_ids.tolist()
            assert plain_step["epoch"] == recorded.epoch == expected.epoch
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


def test_the_golden_log_of_a_killed_run_stays_readable() -> None:
    plain = PlainLeft(GOLDEN_LOGS / "killed" / "live-0000000000.h5")
    with RunLog.open(GOLDEN_LOGS / "killed") as log:
        assert (log.finished, len(log) + 1) == (False, len(plain.steps))
        for t, (plain_step, recorded) in enumerate(zip(plain.steps, log.steps(0, 4), strict=False)):
            expected = killed_step(t)
            assert plain_step["ids"] == recorded.example_ids.tolist() == expected.example_ids.tolist()
            stored = [draw.batch() for micro in recorded.micro_batches for draw in micro.draws if draw.batch]
            assert [described(decode_batch(data)) for data in stored] == [described(killed_batch(t))]
        assert log.state_indices.tolist() == [0, 1, 2, 3, 4]
        for t in range(5):
            assert plain.states[t] == raw(log.state(t)) == raw(golden_state(t))
    for t, (batch,) in enumerate(plain.batches):
        image, (label, *rest), extra = batch["image"], batch["label"], batch["extra"]
        assert image.tolist() == [[t, 0.5], [1.5, -t]]
        assert label.tolist() == [t, 2**60]
        assert (label.dtype, rest) == (np.dtype("<i8"), ["cat", None, True])
        assert [part.tolist() for part in extra[:3]] == [[1, 0], [[0.0, float(t)]], 7]
        assert extra[3] == b"raw" * t
        assert np.isnan(extra[4])


def killed_batch(t: int) -> object:
    """A batch with something of every kind."""
    return {
        "image": torch.tensor([[t, 0.5], [1.5, -t]]),
        "label": Labelled(torch.tensor([t, 2**60]), "cat", None, True),
        "extra": [
            np.array([True, False]), torch.tensor([complex(0, t)]), np.int16(7), b"raw" * t, float("nan"),
        ],
    }  # fmt: skip


Labelled = namedtuple("Labelled", "values name nothing yes")


def killed_step(t: int) -> Step:
    step = golden_step(t)
    (first, second), data = step.micro_batches, encode_batch(killed_batch(t))
    draws = (replace(first.draws[0], batch=lambda: data), *first.draws[1:])
    return replace(step, micro_batches=(replace(first, draws=draws), second))


def test_what_is_written_is_what_the_golden_logs_hold(tmp_path: Path) -> None:
    """Whoever changes what is written gives the format another number, and golden logs of that number. What old readers
    may ignore (members of documents, attributes) may be added; then the golden logs of this number stay as they are,
    and this test says what was added."""
    write_golden(tmp_path)
    for golden in sorted(GOLDEN_LOGS.rglob("*.h5")):
        fresh = tmp_path / golden.relative_to(GOLDEN_LOGS)
        assert content_of(fresh) == content_of(golden), fresh.name


def content_of(path: Path) -> dict[str, object]:
    """All objects of a file by name: attributes, types, shapes, filters, and values."""
    content: dict[str, object] = {}
    data = path.read_bytes()
    with h5py.File(io.BytesIO(mended(path) if path.name.startswith("live") else data)) as file:

        def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
            content[name] = {key: (type(value), str(value)) for key, value in item.attrs.items()}
            if isinstance(item, h5py.Dataset):
                properties = item.id.get_create_plist()
                filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
                content[name] |= {"": (item.dtype.str, item.shape, item.maxshape, item.chunks, filters)}
                content[f"{name} values"] = item[()].tolist()

        file.visititems(visit)
        visit("/", file)
        if "page" in file:
            for name in ("page", "page_end"):  # zlib may compress otherwise, and a second may pass between two flushes
                del content[name], content[f"{name} values"]
            content["pages"] = list(pages(file))
    return content


def golden_state(t: int) -> ModelState:
    """Of numbers that are the same on every machine."""
    places = torch.arange(520, dtype=torch.float64)
    start, slope = (places * 389 % 1009 - 504) / 256, (places * 613 % 1013 - 506) / 256
    weights = (start + slope * t / 1024).float()
    momentum = {"momentum_buffer": (slope * 0.875**t).float(), "step": torch.tensor(float(t))}
    made_up = make_state(t)
    return ModelState(
        params={"w": weights.view(4, -1), "größe": made_up.params["größe"]},
        buffers={**made_up.buffers, "half": weights[:3].bfloat16()},
        optimizer={"w": momentum},
    )


def golden_step(t: int) -> Step:
    """With the state of a twister that moves on."""
    generator = np.random.RandomState(t // 3)
    generator.rand(700 * t)
    _, keys, position, *_ = generator.get_state()
    state = np.asarray(keys, "<u4").tobytes() + struct.pack("<iid", position, 0, 0.0)
    step = make_step(t)
    draw = replace(step.micro_batches[0].draws[0], random={"numpy": state})
    return replace(step, micro_batches=(replace(step.micro_batches[0], draws=(draw,)), *step.micro_batches[1:]))


def write_golden(place: Path) -> None:
    """How the golden logs were made, once, by the first release."""
    for codec in CODECS:
        write_run(place / codec, 6, state=golden_state, step=golden_step, keep=lambda t: t != 2, codec=codec)
    writer = write_run(place / "writing", 5, state=golden_state, step=killed_step, flush_every=3, finish=False)
    (place / "killed").mkdir()
    shutil.copyfile(place / "writing" / "live-0000000000.h5", place / "killed" / "live-0000000000.h5")
    writer.abandon("")
    shutil.rmtree(place / "writing")
    for lock in place.glob("*/LOCK"):
        lock.unlink()


if __name__ == "__main__":
    write_golden(GOLDEN_LOGS)
