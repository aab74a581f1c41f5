"""What goes in comes out."""

from __future__ import annotations

import copy
import gc
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from h5py._objects import phil
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lightning_sgdinf.errors import ConfigurationError, LogWriteError, StateNotStoredError, UnsupportedRunError
from lightning_sgdinf.log import (
    Clip,
    Draw,
    LogWriter,
    MemoryLog,
    MicroBatch,
    ParamGroup,
    RunLog,
    Step,
    Trajectory,
    state_checksum,
)
from lightning_sgdinf.state import Layout, ModelState
from tests.log.cases import assert_same_state, described, make_header, make_state, make_step, put, write_run

CODECS = ["none", "delta", "small", "delta2", "auto"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.text(min_size=1, max_size=6)
random_states = st.dictionaries(names, st.binary(max_size=12), max_size=3)
ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(lambda v: np.array(v, np.int64))
draws = st.builds(
    Draw,
    loader=st.integers(0, 3),
    example_ids=ids,
    random=random_states,
    digest=st.none() | st.integers(0, 2**32 - 1),
    single=st.booleans(),
)
micro_batches = st.builds(
    MicroBatch,
    batch_idx=st.integers(0, 10**9),
    draws=st.lists(draws, max_size=3).map(tuple),
    transferred_with=random_states,
    stepped_with=random_states,
)
groups = st.builds(
    ParamGroup,
    params=st.lists(names, max_size=3).map(tuple),
    options=st.dictionaries(names, json_values, max_size=3).flatmap(
        lambda options: st.floats().map(lambda lr: options | {"lr": lr})
    ),
)
steps = st.builds(
    Step,
    index=st.just(0),
    epoch=st.integers(0, 100),
    global_step=st.integers(0, 10**9),
    micro_batches=st.lists(micro_batches, max_size=3).map(tuple),
    groups=st.lists(groups, min_size=1, max_size=3).map(tuple),
    accumulation=st.integers(1, 8),
    clip=st.none() | st.builds(Clip, st.floats(), st.sampled_from(["norm", "value"])),
    eval_modules=st.lists(st.text(max_size=4), max_size=2).map(tuple),
    average=st.none() | st.tuples(st.floats(), st.floats()),
    loss=st.none() | st.floats(),
    changed=st.lists(names, max_size=2).map(tuple),
)
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
]


@st.composite
def states(draw: st.DrawFn) -> ModelState:
    """Tensors of random dtypes, shapes and bits: every NaN, too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def tensor() -> torch.Tensor:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        if dtype is torch.bool:
            return torch.from_numpy(rng.integers(0, 2, shape).astype(bool).reshape(shape))
        data = torch.from_numpy(rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize).astype(np.uint8))
        return (data.view(dtype) if len(data) else torch.empty(0, dtype=dtype)).view(shape)

    def some(most: int) -> dict[str, torch.Tensor]:
        return {name: tensor() for name in draw(st.lists(names, max_size=most, unique=True))}

    return ModelState(params=some(3), buffers=some(2), optimizer={n: some(2) or {"s": tensor()} for n in some(2)})


def rebuilt(state: ModelState, seed: int) -> ModelState:
    """A state of the same layout and other bits."""
    rng = np.random.default_rng(seed)

    def other(value: torch.Tensor) -> torch.Tensor:
        if not value.numel() or value.dtype is torch.bool:
            return value.clone()
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        flips = rng.integers(0, 256, len(data)).astype(np.uint8) * (rng.random(len(data)) < 0.3)
        return torch.from_numpy(data ^ flips.astype(np.uint8)).view(value.dtype).view(value.shape)

    return state.map(other)


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    made=st.lists(steps, min_size=1, max_size=8),
    kinds=st.lists(states(), min_size=1, max_size=2),
    kept=st.lists(st.booleans(), min_size=8, max_size=8),
    change=st.integers(1, 7),
    codec=st.sampled_from(CODECS),
    flush_every=st.integers(1, 4),
)
def test_any_run(made, kinds, kept, change, codec, flush_every) -> None:
    count = len(made)
    made = [copy.copy(step) for step in made]
    for index, step in enumerate(made):
        object.__setattr__(step, "index", index)
    history = [rebuilt(kinds[0] if t < change else kinds[-1], t) for t in range(count + 1)]
    header = make_header()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.tlog"
        write_run(
            path,
            count,
            state=history.__getitem__,
            step=made.__getitem__,
            keep=kept.__getitem__,
            codec=codec,
            flush_every=flush_every,
        )
        stored = {t: history[t] for t in range(count) if kept[t]} | {count: history[count]}
        twin = MemoryLog(
            header=header,
            steps=made,
            states=stored,
            average={"w": torch.full((2,), 0.5)},
            checksums={t: state_checksum(s) for t, s in enumerate(history)},
        )
        with RunLog.open(path) as log:
            assert_same_content(log, twin)
            assert log.verify().ok


def assert_same_content(log: RunLog, twin: MemoryLog) -> None:
    assert isinstance(log, Trajectory)
    assert isinstance(twin, Trajectory)
    assert described(log.header) == described(twin.header)
    assert len(log) == len(twin)
    assert log.finished
    assert twin.finished
    assert log.digest == twin.digest
    assert log.state_indices.tolist() == twin.state_indices.tolist()
    assert log.average is not None
    assert twin.average is not None
    assert {n: v.tolist() for n, v in log.average.items()} == {n: v.tolist() for n, v in twin.average.items()}
    for index in [*reversed(log.state_indices.tolist()), *log.state_indices.tolist()]:
        assert_same_state(log.state(index), twin.state(index))
    for index in range(len(log) + 1):
        assert log.state_checksum(index) == twin.state_checksum(index)
    for start, stop in ((0, len(log)), (len(log), 0), (len(log) // 2, len(log) // 2)):
        recorded, expected = list(log.steps(start, stop)), list(twin.steps(start, stop))
        assert [described(s) for s in recorded] == [described(s) for s in expected]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keep", [1, 3])
def test_states_in_any_order(tmp_path: Path, codec: str, keep: int) -> None:
    """Many segments, a layout that changes after the first step, sparse states."""

    def state(t: int) -> ModelState:
        return make_state(t, momentum=t > 0)

    write_run(tmp_path / "run", 60, state=state, keep=lambda t: t % keep == 0, codec=codec, segment_bytes=1)
    order = np.random.default_rng(0).permutation(np.repeat([t for t in range(60) if t % keep == 0] + [60], 2))
    with RunLog.open(tmp_path / "run") as log:
        assert len(list(log.path.glob("seg-*"))) > 2
        for index in order.tolist():
            assert_same_state(log.state(index), state(index))
        for index in range(61):
            assert log.state_checksum(index) == state_checksum(state(index))
        if keep > 1:
            with pytest.raises(StateNotStoredError, match=r"state 2 was not kept.*nearest one before it is 0"):
                log.state(2)
        with pytest.raises(IndexError):
            log.state(61)
        with pytest.raises(IndexError):
            log.step(60)
        with pytest.raises(IndexError):
            next(log.steps(0, 61))


def test_number_of_groups_may_change(tmp_path: Path) -> None:
    def step(t: int) -> Step:
        return make_step(t, groups=1 if t < 3 else 2)

    write_run(tmp_path / "run", 6, step=step)
    with RunLog.open(tmp_path / "run") as log:
        assert [len(s.groups) for s in log.steps(0, 6)] == [1, 1, 1, 2, 2, 2]
        assert log.step(5).learning_rates == step(5).learning_rates


def test_read_states_own_their_memory(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 5)
    with RunLog.open(tmp_path / "run") as log:
        for index in (3, 5):
            first = log.state(index)
            kept = first.clone()
            for *_, value in first.items():
                value.zero_()
            log.state(2)
            assert_same_state(log.state(index), kept)
        ids_of_step = log.step(1).example_ids
        ids_of_step[:] = 0
        assert log.step(1).example_ids.tolist() == make_step(1).example_ids.tolist()


def test_a_large_final_state_is_not_kept_but_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run.tlog", steps=3)
    monkeypatch.setattr("lightning_sgdinf.log.end_mark.SMALL_BYTES", 0)
    with RunLog.open(tmp_path / "run.tlog") as log:
        assert log._end is not None
        assert log._end.small_state is None
        assert log.finished
        first, second = log.state(3), log.state(3)
    for state in (first, second):
        assert_same_state(state, make_state(3))
    assert first.params["w"].data_ptr() != second.params["w"].data_ptr()


def test_large_lanes_in_several_chunks(tmp_path: Path) -> None:
    def state(t: int) -> ModelState:
        weights = torch.linspace(-1, 1, 300_001) * (1 + 1e-4 * t)
        return ModelState(params={"w": weights, "d": weights[:20_000].double()})

    for codec in CODECS:
        write_run(tmp_path / codec, 5, state=state, codec=codec)
        with RunLog.open(tmp_path / codec) as log:
            for index in (4, 0, 2, 3, 1, 5):
                assert_same_state(log.state(index), state(index))
    sizes = [sum(p.stat().st_size for p in (tmp_path / codec).glob("seg-*")) for codec in CODECS]
    assert sizes[1] < 0.8 * sizes[0], "differences did not compress: the test is degenerate"


def test_no_steps_at_all(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0)
    with RunLog.open(tmp_path / "run") as log:
        assert (len(log), log.state_indices.tolist(), list(log.steps(0, 0))) == (0, [0], [])
        assert_same_state(log.state(0), make_state(0))
        assert log.verify().ok


def test_state_checksum_does_not_depend_on_order_or_device_layout() -> None:
    one = make_state(3)
    other = ModelState(
        params=dict(reversed(one.params.items())),
        buffers=dict(reversed(one.buffers.items())),
        optimizer={"w": dict(reversed(one.optimizer["w"].items()))},
    )
    transposed = one.map(lambda v: v.t().contiguous().t() if v.ndim == 2 else v)
    assert state_checksum(one) == state_checksum(other) == state_checksum(transposed)
    renamed = ModelState(params={"v": one.params["w"], "größe": one.params["größe"]}, buffers=one.buffers)
    assert state_checksum(renamed) != state_checksum(ModelState(params=one.params, buffers=one.buffers))


def test_digest_names_the_content(tmp_path: Path) -> None:
    digests = set()
    for place, (header, count) in enumerate([(make_header(), 4), (make_header(), 5), (make_header(run_id="00"), 4)]):
        write_run(tmp_path / str(place), count, header=header)
        with RunLog.open(tmp_path / str(place)) as log:
            digests.add(log.digest)
    assert len(digests) == 3


def test_writer_cannot_be_copied_and_keeps_order(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", 3, finish=False)
    with pytest.raises(ConfigurationError, match="cannot be pickled"):
        pickle.dumps(writer)
    with pytest.raises(ConfigurationError, match="cannot be pickled"):
        copy.deepcopy(writer)
    with pytest.raises(ConfigurationError, match="expected step 3"):
        put(writer, make_state(4), make_step(4))
    writer.abandon("done")
    writer.abandon("again")
    with pytest.raises(LogWriteError, match="closed"):
        put(writer, make_state(3), make_step(3))


def test_a_writer_that_is_lost_seals_its_log(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", 3, finish=False)
    queue = writer._queue
    del writer
    queue.wait_for_end()
    with RunLog.open(tmp_path / "run") as log:
        assert (log.finished, len(log)) == (False, 2)


def test_a_writer_that_is_lost_while_the_lock_of_hdf5_is_held_is_not_waited_for(tmp_path: Path) -> None:
    """Garbage is collected in any thread, at any time: also in a reader that is within HDF5."""
    writer = write_run(tmp_path / "run", 3, finish=False)
    queue, cycle = writer._queue, [writer]
    cycle.append(cycle)  # type: ignore[arg-type]
    del writer, cycle
    with phil:
        gc.collect()
        assert not queue.ended
    LogWriter(tmp_path / "run", header=make_header(), overwrite=True).abandon("it had the path at once")


def test_unwritable_steps_raise_at_the_next_call_and_never_hang(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run", 2, finish=False)
    bad = make_step(2)
    bad.groups[0].options["hook"] = object()  # type: ignore[index]
    put(writer, make_state(2), bad)
    with pytest.raises(UnsupportedRunError, match="not JSON serializable"):
        writer.flush()
    layout = Layout.of(make_state(0))
    for _ in range(20):  # more than there are sets of flat buffers
        with pytest.raises(UnsupportedRunError):
            writer.take_buffers(layout)
    writer.abandon("nothing to do")
    with RunLog.open(tmp_path / "run") as log:
        assert len(log) == 1


def test_dead_writer_thread_never_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: object) -> None:
        return

    monkeypatch.setattr("lightning_sgdinf.log.writer.WriterThread.run", die)
    writer = LogWriter(tmp_path / "run", header=make_header())
    writer._queue.wait_for_end()
    with pytest.raises(LogWriteError, match="thread"):
        put(writer, make_state(0), make_step(0))
    layout = Layout.of(make_state(0))
    with pytest.raises(LogWriteError, match="thread"):
        _ = [writer.take_buffers(layout) for _ in range(20)]  # more than there are
    with pytest.raises(LogWriteError, match="thread"):
        writer.flush()


def test_wrong_arguments(tmp_path: Path) -> None:
    for wrong in ({"codec": "zip"}, {"when_full": "cry"}, {"flush_every": 0}, {"queue_bytes": 0}):
        with pytest.raises(ConfigurationError):
            LogWriter(tmp_path / "run", header=make_header(), **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    writer = LogWriter(tmp_path / "run", header=make_header())
    odd = ModelState(params={"w": torch.zeros(2, dtype=torch.float8_e4m3fnuz)})
    with pytest.raises(ConfigurationError, match="dtype float8_e4m3fnuz"):
        writer.take_buffers(Layout.of(odd))
    writer.abandon("no step")
    with pytest.raises(ConfigurationError):
        MemoryLog(header=make_header(), steps=[make_step(0)], states={0: make_state(0)})
    with pytest.raises(ConfigurationError):
        MemoryLog(header=make_header(), steps=[make_step(1)], states={1: make_state(0)})
