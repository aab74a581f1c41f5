"""The ensemble that forgot is the ensemble that never knew, bit for bit; whatever was interrupted; and it says what it
costs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_sgdinf.ensembles import Sisa, aggregate
from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.log import RunLog
from tests.ensembles.runs import Drawing, Plain, Points, Shifting, failing_at, same, sisa


def by_hand(ensemble: Sisa, shard: int, dataset: Points, without: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Train a shard's linear model in a loop of its own."""
    plan = ensemble.plan
    start = ensemble._fitted.new_model(shard).state_dict()
    params = [start[f"net.{name}"].clone().requires_grad_() for name in ("weight", "bias")]
    velocity = [torch.zeros_like(p) for p in params]
    for stage in range(plan.slices):
        for epoch in range(plan.stage_epochs(stage)):
            for batch in plan.batches(shard, stage, epoch, frozenset(without)):
                logits = dataset.x[batch] @ params[0].T + params[1]
                loss = -logits.log_softmax(1)[torch.arange(len(batch)), dataset.y[batch]].mean()
                for p, v, g in zip(params, velocity, torch.autograd.grad(loss, params), strict=True):
                    v.mul_(0.8).add_(g)
                    p.data.sub_(0.2 * v)
    return params[0].detach(), params[1].detach()


def test_members_are_trained_as_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Points()
    before = torch.random.get_rng_state()
    ensemble = sisa(tmp_path).fit(Plain, dataset, without=[4, 11, 30])
    assert torch.equal(torch.random.get_rng_state(), before)
    outputs = []
    for shard, state in enumerate(ensemble.states()):
        weight, bias = by_hand(ensemble, shard, dataset, {4, 11, 30})
        assert state is not None
        torch.testing.assert_close(state["net.weight"], weight, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(state["net.bias"], bias, rtol=1e-12, atol=1e-13)
        outputs.append(dataset.x @ weight.T + bias)
    mean = torch.stack([functional.softmax(o, 1) for o in outputs]).mean(0)
    torch.testing.assert_close(ensemble.predict(dataset.x), mean)
    with monkeypatch.context() as patched:  # members are neither made nor read again, until something is forgotten
        patched.setattr(torch, "load", None)
        patched.setattr(Plain, "__init__", None)
        torch.testing.assert_close(ensemble.predict(dataset.x), mean)
    ensemble.unlearn([0])
    assert not torch.allclose(ensemble.predict(dataset.x), mean)


@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (2, 3), (5, 1)])
def test_forgetting_is_never_having_known(shards: int, slices: int, tmp_path: Path) -> None:
    numbers = {"shards": shards, "slices": slices}
    ensemble = sisa(tmp_path / "a", **numbers).fit(Drawing, Points(noisy=True))
    before = ensemble.states()
    first, second = [3, 17], [0, 17, 20]
    cost = ensemble.forecast(first)
    done = ensemble.unlearn(first)
    assert (done.visits, len(done.shards)) == (cost.visits, cost.shards)
    assert done.forgotten == (3, 17)
    ensemble.unlearn(second)
    without = sisa(tmp_path / "b", **numbers).fit(Drawing, Points(noisy=True), without={*first, *second})
    assert same(ensemble, without)
    hit = set(ensemble.plan.shard_of()[[0, 3, 17, 20]].tolist())
    for shard, (old, new) in enumerate(zip(before, ensemble.states(), strict=True)):
        assert old is not None
        assert new is not None
        assert all(torch.equal(old[n], new[n]) for n in old) == (shard not in hit)


def test_a_data_module_with_hooks(tmp_path: Path) -> None:
    ensemble = sisa(tmp_path / "a").fit(Drawing, Shifting())
    plain = sisa(tmp_path / "b").fit(Drawing, Points(noisy=True))
    assert not same(ensemble, plain)  # the hook was called
    ensemble.unlearn([5])
    assert same(ensemble, sisa(tmp_path / "c").fit(Drawing, Shifting(), without=[5]))


@pytest.mark.parametrize("call", [3, 8, 13])
def test_what_was_interrupted_goes_on(call: int, tmp_path: Path) -> None:
    whole = sisa(tmp_path / "a").fit(Drawing, Points())
    with pytest.raises(RuntimeError, match="went away"):
        sisa(tmp_path / "b").fit(failing_at(call), Points())
    again = sisa(tmp_path / "b").fit(Drawing, Points())
    assert same(whole, again)
    trained = [record.visits for record in again._fitted.records()]
    assert sum(trained) == sum(again.plan.visits(s, frozenset()) for s in range(3))


def test_a_request_is_kept_through_a_crash(tmp_path: Path) -> None:
    sisa(tmp_path / "a").fit(Drawing, Points())
    model = failing_at(2)
    broken = sisa(tmp_path / "a").fit(model, Points())  # nothing to train: nothing fails
    with pytest.raises(RuntimeError, match="went away"):
        broken.unlearn([1, 2, 8])
    with pytest.raises(ConfigurationError, match=r"is not trained without the 3 examples .* unlearn\(\[\]\)"):
        broken.predict(Points().x)
    later = sisa(tmp_path / "a").fit(Drawing, Points())  # nobody says which
    assert later.forgotten == (1, 2, 8)
    assert same(later, sisa(tmp_path / "b").fit(Drawing, Points(), without=[1, 2, 8]))


def test_no_file_remembers_what_was_forgotten(tmp_path: Path) -> None:
    ensemble = sisa(tmp_path, keep="every_step").fit(Plain, Points())
    shard = int(ensemble.plan.shard_of()[7])
    seen = [r for r in range(2) if r >= (ensemble.plan.first_stage(shard, frozenset([7])) or 0)]
    old = {file for file in tmp_path.glob(f"shard-{shard:03d}/stage-*") if int(file.name[6:8]) in seen}
    assert old
    ensemble.unlearn([7])
    assert not [file for file in old if file.exists()]
    with RunLog.open(tmp_path / f"shard-{shard:03d}" / "run.tlog") as log:
        drawn = {
            int(j) for s in range(len(log)) for m in log.step(s).micro_batches for d in m.draws for j in d.example_ids
        }
    assert drawn == set(ensemble.plan.members(shard).tolist()) - {7}


def test_a_shard_of_which_nothing_is_left_has_no_vote(tmp_path: Path) -> None:
    ensemble = sisa(tmp_path).fit(Plain, Points())
    outputs = [model(Points().x) for shard, model in ensemble.members().items() if shard != 1]
    ensemble.unlearn(ensemble.plan.members(1).tolist())
    assert [state is None for state in ensemble.states()] == [False, True, False]
    torch.testing.assert_close(ensemble.predict(Points().x), aggregate(torch.stack(outputs), "mean_softmax"))
    with pytest.raises(ConfigurationError, match="all 37 training examples would be forgotten"):
        ensemble.unlearn(range(37))
    assert len(ensemble.forgotten) == len(ensemble.plan.members(1))


def test_a_first_slice_of_which_nothing_is_left(tmp_path: Path) -> None:
    ensemble = sisa(tmp_path / "a").fit(Drawing, Points())
    gone = ensemble.plan.slices_of(2)[0].tolist()
    ensemble.unlearn(gone)
    assert same(ensemble, sisa(tmp_path / "b").fit(Drawing, Points(), without=gone))


def test_side_by_side(tmp_path: Path) -> None:
    one = sisa(tmp_path / "a").fit(Plain, Points())
    with joblib.parallel_config(backend="multiprocessing"):
        assert same(one, sisa(tmp_path / "b", workers=2).fit(Plain, Points()))
    with (
        joblib.parallel_config(backend="threading"),
        pytest.raises(ConfigurationError, match="threads share one random generator"),
    ):
        sisa(tmp_path / "c", workers=2).fit(Plain, Points())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not fitted in this process"):
        sisa(tmp_path).unlearn([1])
    with pytest.raises(ConfigurationError, match="workers: expected at least 1, got 0"):
        sisa(tmp_path, workers=0)
    ensemble = sisa(tmp_path).fit(Plain, Points())
    for ids in ([37], [-1], [5, 99]):
        with pytest.raises(ConfigurationError, match=r"training ids in \[0, 37\)"):
            ensemble.unlearn(ids)
    assert ensemble.forgotten == ()
    with pytest.raises(ConfigurationError, match=r"expected a map-style data set.*got list_iterator"):
        sisa(tmp_path).fit(Plain, iter([]))
    changed = Points()
    changed.y[0] = 2
    for other, dataset, said in (
        (sisa(tmp_path, shards=2), Points(), "shards: 3 there, 2 now"),
        (sisa(tmp_path), Points(30), "examples: 37 there, 30 now"),
        (sisa(tmp_path), changed, "content: "),
    ):
        with pytest.raises(ConfigurationError, match=f"holds another ensemble.*{said}"):
            other.fit(Plain, dataset)
    assert json.loads((tmp_path / "forgotten.json").read_text()) == []


def test_another_model_is_not_taken_for_this_one(tmp_path: Path) -> None:
    sisa(tmp_path).fit(Plain, Points())
    assert same(sisa(tmp_path).fit(Drawing, Points()), sisa(tmp_path / "b").fit(Drawing, Points()))


def loaders() -> Any:
    return DataLoader(
        Points(), batch_size=3, collate_fn=lambda items: [torch.stack(part) for part in zip(*items, strict=True)]
    )


def test_a_loader_gives_its_collate_function(tmp_path: Path) -> None:
    assert same(sisa(tmp_path / "a").fit(Plain, loaders()), sisa(tmp_path / "b").fit(Plain, Points()))


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("stage", [0, -1])
def test_a_folder_of_somebody_elses_runs_nothing(stage: int, tmp_path: Path) -> None:
    root, trace = tmp_path / "root", tmp_path / "ran"
    sisa(root).fit(Plain, Points())
    checkpoints = sorted(root.glob("shard-000/*.ckpt"))
    content = torch.load(checkpoints[stage], weights_only=True)
    torch.save(content | {"extra": Trap(trace)}, checkpoints[stage])
    if stage == 0:
        checkpoints[-1].unlink()
    ensemble = sisa(root)
    with pytest.raises(ConfigurationError, match="loading it runs code"):
        ensemble.fit(Plain, Points()).states()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("forgotten.json", "{"),
        ("forgotten.json", '["1"]'),
        ("forgotten.json", "{}"),
        ("ensemble.json", "[]"),
        ("ensemble.json", '{"threads": 1e9}'),
        ("shard-000/stage-00-x.json", "[1]"),
        ("shard-000/stage-00-x.json", '{"digest": "", "visits": "", "seconds": 0}'),
    ],
)
def test_notes_in_its_folder_that_are_none(name: str, content: str, untouched: Sisa) -> None:
    file = untouched.root / name
    before = file.read_bytes() if file.is_file() else None
    file.write_text(content)
    try:
        with pytest.raises(ConfigurationError, match=rf"{file.name}|holds another ensemble"):
            sisa(untouched.root).fit(Plain, Points()) if before else untouched.forecast([0])
    finally:
        file.unlink() if before is None else file.write_bytes(before)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Sisa:
    return sisa(tmp_path_factory.mktemp("notes")).fit(Plain, Points())
