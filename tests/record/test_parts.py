"""The parts of the recorder by themselves."""

import copy
import pickle
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_sgdinf import random_state
from lightning_sgdinf.bitwise import changed_tensors
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.record.example_ids import TrackedBatch, integer_ids, track
from lightning_sgdinf.record.guard import Guard
from lightning_sgdinf.record.optimizer_steps import OptimizerSteps, as_json
from lightning_sgdinf.record.patches import Patches
from lightning_sgdinf.record.random_watch import RandomWatch
from lightning_sgdinf.record.state_reader import StateReader

# Random states -------------------------------------------------------------------------------------------------

DRAWS = {
    "nothing": lambda: None,
    "torch": lambda: torch.rand(1),
    "python": random.random,
    "python, first of two normals": lambda: random.gauss(0, 1),
    "python, second of two normals": lambda: (random.gauss(0, 1), random.gauss(0, 1)),
    "numpy": np.random.rand,
    "numpy, first of two normals": np.random.randn,
    "numpy, second of two normals": lambda: (np.random.randn(), np.random.randn()),
    "seeds": lambda: (random.seed(5), np.random.seed(5), torch.manual_seed(5)),
}


@pytest.mark.parametrize("first", DRAWS)
@pytest.mark.parametrize("second", DRAWS)
def test_a_watch_always_tells_the_present_state(first, second):
    watch = RandomWatch()
    watch.capture()
    for draw in (first, second, "nothing", first):
        DRAWS[draw]()
        expected = random_state.capture()
        assert watch.capture() == expected
        assert watch.capture() == expected


def test_a_cached_normal_that_is_used_up_is_seen():
    # It leaves the twister's words and position as they are.
    np.random.randn()
    watch = RandomWatch()
    before = watch.capture()["numpy"]
    np.random.randn()
    assert watch.capture()["numpy"] != before
    random.gauss(0, 1)
    before = watch.capture()["python"]
    random.gauss(0, 1)
    assert watch.capture()["python"] != before


def test_what_has_not_moved_is_the_same_object():
    watch = RandomWatch()
    one = watch.capture()
    torch.rand(1)
    two = watch.capture()
    assert one["python"] is two["python"]
    assert one["numpy"] is two["numpy"]
    assert one["torch"] != two["torch"]
    assert two["torch"] is watch.capture()["torch"]


def test_a_watch_starts_afresh_in_another_process():
    watch = RandomWatch()
    watch.capture()
    for twin in (pickle.loads(pickle.dumps(watch)), copy.deepcopy(watch)):
        assert twin is not watch
        assert twin.capture() == random_state.capture()


# Ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "ids"),
    [
        ([3, 1], [3, 1]),
        (7, [7]),
        (np.array([2, 5]), [2, 5]),
        (torch.tensor([2, 5]), [2, 5]),
        ([torch.tensor(2), torch.tensor(5)], [2, 5]),
        (range(2), [0, 1]),
        ("name", None),
        (["a", "b"], None),
        ([(1, 2), (3, 4)], None),
        ([(1, 2), (3,)], None),
        ([0.5], None),
        ([True], None),
    ],
)
def test_integer_ids(indices, ids):
    ids_of = integer_ids(indices)
    if ids is None:
        assert ids_of is None
    else:
        assert ids_of.dtype == np.int64
        assert ids_of.tolist() == ids


def test_batches_carry_their_ids_random_state_and_checksum(lab):
    loader = DataLoader(lab.Examples(), 4, shuffle=True)
    torch.manual_seed(0)
    plain = list(loader)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    carried = list(track(loader, 5, digest=True, watch=RandomWatch()))
    assert all(isinstance(c, TrackedBatch) and c.token == 5 and not c.single for c in carried)
    assert [c.ids.tolist() for c in carried] == [b[2].tolist() for b in plain]
    for c in carried:
        assert c.digest == batch_digest(c.batch)
        random_state.restore(c.random)
        again = loader.collate_fn([loader.dataset[i] for i in c.ids])
        assert batch_digest(again) == c.digest
    assert type(next(iter(loader))) is list  # the user's loader is as it was


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_taken_off_in_the_iterator(lab, workers):
    sink = deque()
    loader = DataLoader(lab.Examples(), 4, num_workers=workers, persistent_workers=bool(workers))
    twin = track(loader, 0, digest=False, watch=RandomWatch(), sink=sink)
    for _ in range(2):
        for batch in twin:
            assert type(batch) is list
            assert sink.popleft().ids.tolist() == batch[2].tolist()
    assert not sink


def test_carriers_are_pinned_like_batches():
    class Pinnable:
        def pin_memory(self):
            return "pinned"

    carried = TrackedBatch([Pinnable()], token=0, ids=None, random={}, digest=None, single=False)
    assert carried.pin_memory() is carried
    assert carried.batch == ["pinned"]


# Optimizers ----------------------------------------------------------------------------------------------------


def watched(optimizer, module):
    names = {id(p): n for n, p in module.named_parameters()}
    told = []
    steps = OptimizerSteps(
        optimizer,
        guard=Guard(strict=True),
        names=lambda: names,
        before=lambda: told.append("before"),
        after=lambda: told.append(steps.used_groups()),
    )
    steps.attach()
    return steps, told


def step(module, optimizer):
    optimizer.zero_grad()
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def test_groups_are_told_as_json():
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [module.bias], "lr": 0.5}, {"params": [module.weight]}], 0.1)
    steps, told = watched(optimizer, module)
    step(module, optimizer)
    assert told[0] == "before"
    one, two = told[1]
    assert (one.params, two.params) == (("bias",), ("weight",))
    assert (one.options["lr"], two.options["lr"]) == (0.5, 0.1)
    assert one.options["betas"] == [0.9, 0.999]
    assert one.options["foreach"] is None
    assert "params" not in one.options
    step(module, optimizer)
    assert told[3] is told[1]
    steps.remove()
    step(module, optimizer)
    assert len(told) == 4


def test_a_learning_rate_in_a_tensor_is_read_each_time():
    module = nn.Linear(3, 2)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    _, told = watched(optimizer, module)
    step(module, optimizer)
    rate.fill_(0.25)
    step(module, optimizer)
    assert [groups[0].options["lr"] for groups in told[1::2]] == [0.5, 0.25]


def test_options_without_json_value_are_told_by_repr():
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optimizer.param_groups[0]["closure"] = print
    steps, told = watched(optimizer, module)
    step(module, optimizer)
    assert told[1][0].options["closure"] == repr(print)
    assert steps.opaque == {"closure"}


def test_a_derived_step_counts_once():
    class Derived(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    module = nn.Linear(3, 2)
    torch.optim.SGD(module.parameters(), 0.1)  # its class is hooked, too, from now on
    optimizer = Derived(module.parameters(), 0.1)
    _, told = watched(optimizer, module)
    step(module, optimizer)
    assert len(told) == 2


def test_an_optimizer_that_writes_its_own_options_is_told_as_it_began():
    class Counter(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["count"] = self.param_groups[0].get("count", 0) + 1
            return super().step(closure)

    module = nn.Linear(3, 2)
    optimizer = Counter(module.parameters(), 0.1)
    optimizer.param_groups[0]["count"] = 0
    _, told = watched(optimizer, module)
    step(module, optimizer)
    step(module, optimizer)
    assert [groups[0].options["count"] for groups in told[1::2]] == [0, 1]


def test_as_json():
    assert as_json((1, [torch.tensor(2.5), None], {"a": True})) == [1, [2.5, None], {"a": True}]
    with pytest.raises(TypeError):
        as_json(torch.zeros(2))


# States --------------------------------------------------------------------------------------------------------


def module_and_optimizer():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False).double())
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    module.add_module("twin", module[0])  # shared parameters count once
    module[1].weight.requires_grad_(False)
    return module, torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 0.1)


def test_a_state_is_read_whole():
    module, optimizer = module_and_optimizer()
    reader = StateReader(module, optimizer)
    layout, tensors = reader.read()
    assert [spec.label for spec in layout.specs] == [
        "param 0.weight", "param 0.bias", "param 1.bias", "param 2.weight",
        "buffer mask", "buffer 1.running_mean", "buffer 1.running_var", "buffer 1.num_batches_tracked",
    ]  # fmt: skip
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    after, tensors = reader.read()
    assert len(after.specs) == 8 + 3 * 4
    assert reader.read()[0] is after
    flat = after.empty()
    reader.pack(after, tensors, flat)
    state = after.unpack(flat)
    assert torch.equal(state.params["2.weight"], module[2].weight)
    assert torch.equal(state.optimizer["0.bias"]["exp_avg"], optimizer.state[module[0].bias]["exp_avg"])
    assert set(flat) == {"float32", "float64", "int64"}
    assert reader.finite(flat)  # buffers may be infinite
    module[2].weight.data[0, 0] = torch.nan
    reader.pack(after, tensors, flat)
    assert not reader.finite(flat)


def test_large_parameters_whose_sum_overflows_are_finite():
    module = nn.Linear(4, 1, bias=False)
    module.weight.data.fill_(3e38)
    reader = StateReader(module, torch.optim.SGD(module.parameters(), 0.1))
    layout, tensors = reader.read()
    flat = layout.empty()
    reader.pack(layout, tensors, flat)
    assert reader.finite(flat)


def test_numbers_in_the_optimizers_state_are_kept_as_tensors():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optimizer.state[module.bias] = {"count": 3, "none": None, "text": "x"}
    reader = StateReader(module, optimizer)
    layout, tensors = reader.read()
    flat = layout.empty()
    reader.pack(layout, tensors, flat)
    entries = layout.unpack(flat).optimizer["bias"]
    assert entries.keys() == {"count"}
    assert entries["count"].item() == 3.0
    assert reader.unreadable == {"text"}


def test_new_groups_and_replaced_buffers_are_noticed():
    module, optimizer = module_and_optimizer()
    reader = StateReader(module, optimizer)
    before, _ = reader.read()
    module[1].running_mean = torch.ones(2)  # another tensor in the same place
    layout, tensors = reader.read()
    assert layout is before
    flat = layout.empty()
    reader.pack(layout, tensors, flat)
    assert layout.unpack(flat).buffers["1.running_mean"].tolist() == [1.0, 1.0]
    optimizer.add_param_group({"params": [module[1].weight]})
    layout, _ = reader.read()
    assert "param 1.weight" in [spec.label for spec in layout.specs]
    assert list(reader.params) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
    reader.refresh()
    assert reader.read()[0] is layout


def test_changed_tensors():
    module, optimizer = module_and_optimizer()
    reader = StateReader(module, optimizer)

    def take():
        layout, tensors = reader.read()
        flat = layout.empty()
        reader.pack(layout, tensors, flat)
        return layout, flat

    module[0].bias.data[0] = torch.nan
    layout, before = take()
    assert changed_tensors(*take(), layout, before) == ()
    module[0].weight.data[0, 0] *= 1.5
    module[2].weight.data[0, 0] = 0.0
    layout, before = take()
    module[2].weight.data[0, 0] = -0.0
    module[1].num_batches_tracked += 1
    assert changed_tensors(*take(), layout, before) == ("param 2.weight", "buffer 1.num_batches_tracked")
    layout, before = take()
    module.register_buffer("late", torch.zeros(1))
    reader.refresh()
    assert changed_tensors(*take(), layout, before) == ("buffer late",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("place", ["contiguous", "transposed"])
def test_a_state_matches_what_was_packed_bit_by_bit(dtype, place):
    weight = torch.arange(6.0).reshape(2, 3).to(dtype)
    module = nn.Module()
    module.weight = nn.Parameter(weight if place == "contiguous" else weight.t().contiguous().t())
    assert module.weight.is_contiguous() == (place == "contiguous")
    reader = StateReader(module, torch.optim.SGD(module.parameters(), 0.1))

    def packed():
        layout, tensors = reader.read()
        flat = layout.empty()
        reader.pack(layout, tensors, flat)
        return flat

    def matches(flat):
        return reader.matches(*reader.read(), flat)

    module.weight.data[1, 2] = torch.nan
    flat = packed()
    assert matches(flat)  # NaN is equal to itself here
    assert module.weight[0, 0] == 0
    module.weight.data[0, 0] = -0.0
    assert not matches(flat)
    flat = packed()
    assert matches(flat)
    module.weight.data[1, 1] += 1
    assert not matches(flat)


# Patches -------------------------------------------------------------------------------------------------------


def test_patches_leave_things_as_they_were():
    class Host:
        def act(self):
            return 1

    plain, own, other = Host(), Host(), Host()
    own.act = original = lambda: 2
    patches = Patches()
    for host in (plain, own, other):
        patches.place(host, "act", lambda act: lambda: 10 * act())
    assert (plain.act(), own.act(), other.act()) == (10, 20, 10)
    other.act = later = lambda: 3
    patches.undo()
    assert "act" not in vars(plain)
    assert own.act is original
    assert other.act is later
    patches.undo()
