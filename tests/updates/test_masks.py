"""Criteria of parameters against the same by brute force: passes of one's own, loops over units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.parameters import ParameterMask
from lightning_sgdinf.testing.runs import SmallNet, SmallRun, small_run
from lightning_sgdinf.updates.masks import (
    AllParameters,
    ExclusiveUnits,
    HighestUnits,
    LowestUnits,
    RandomParameters,
    ThresholdUnits,
    unit_scores,
)
from tests.updates.test_extrapolated import opened

IDS = (1, 4, 7, 10)


class Convolving(SmallNet):
    """A linear layer, a convolution without bias, a linear layer."""

    def __init__(self) -> None:
        super().__init__(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, bias=False), nn.Tanh(), nn.Flatten())


@pytest.fixture(scope="module")
def run() -> SmallRun:
    return small_run(make=Convolving, learnable=True)


def scores_by_hand(run: SmallRun, params: dict[str, Tensor], by: str) -> dict[str, Tensor]:
    x, y = (t[list(IDS)] for t in run.train.dataset.tensors)
    first = F.linear(x, params["0.weight"], params["0.bias"]).requires_grad_()
    second = F.conv1d(first[:, None], params["2.weight"])
    last = F.linear(second.tanh().flatten(1), params["5.weight"], params["5.bias"])
    outputs = {"0": first, "2": second, "5": last}
    if by == "gradients":
        slopes = torch.autograd.grad(F.cross_entropy(last, y), list(outputs.values()))
        outputs = dict(zip(outputs, slopes, strict=True))
    return {n: v.mean(0 if v.ndim == 2 else (0, 2)).abs().detach() for n, v in outputs.items()}


@pytest.mark.parametrize("by", ["outputs", "gradients"])
def test_scores_are_absolute_means_at_the_layers(run: SmallRun, by: str) -> None:
    with opened(run) as open_run:
        found = unit_scores(open_run, open_run.model, IDS, by, batch_size=3)
        params = {n: v.clone() for n, v in open_run.model.params.items()}
    expected = scores_by_hand(run, params, by)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-10), name


def parts(mask: ParameterMask, run: SmallRun) -> dict[str, Tensor]:
    named = dict(run.model.named_parameters())
    pieces = mask.chosen.split([p.numel() for p in named.values()])
    return {n: piece.view(p.shape) for (n, p), piece in zip(named.items(), pieces, strict=True)}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.83])
@pytest.mark.parametrize("by", ["outputs", "gradients"])
@pytest.mark.parametrize("kind", [HighestUnits, LowestUnits, ExclusiveUnits])
def test_whole_units_in_order_and_a_part_of_the_next(run: SmallRun, kind: type, by: str, ratio: float) -> None:
    if kind is ExclusiveUnits and ratio > 0.5:
        pytest.skip("refused")
    with opened(run) as open_run:
        chosen = parts(kind(ratio, by=by).choose(open_run, open_run.model, IDS), run)
        scores = scores_by_hand(run, dict(open_run.model.params), by)
    for name, biased in (("0", True), ("2", False), ("5", True)):
        weights = chosen[f"{name}.weight"].flatten(1)
        units, inputs = weights.shape
        per_unit = inputs + biased
        budget = int(ratio * units * per_unit)
        whole, left = divmod(budget, per_unit)
        counts = weights.sum(1)
        full = (counts == inputs) & (chosen[f"{name}.bias"] if biased else True)
        order = sorted(range(units), key=lambda u: float(scores[name][u]), reverse=kind is not LowestUnits)
        touched = whole + (left > 0)
        if kind is ExclusiveUnits:
            allowed = set(order[touched:])
            assert set(counts.nonzero()[:, 0].tolist()) <= allowed
            assert int(full.sum()) == min(whole, len(allowed))
        else:
            assert set(full.nonzero()[:, 0].tolist()) >= set(order[:whole])
            if left and whole < units:
                assert counts[order[whole]] == min(left, inputs)
            assert set(counts.nonzero()[:, 0].tolist()) == set(order[: min(touched, units)])
        if biased:
            assert int(chosen[f"{name}.bias"].sum()) == int(full.sum()), "a unit that is not whole keeps its bias"


def test_random_parts_and_seeds(run: SmallRun) -> None:
    with opened(run) as open_run:
        one, other, again = (RandomParameters(0.5, seed=s).choose(open_run, open_run.model, IDS) for s in (0, 1, 0))
        every = AllParameters().choose(open_run, open_run.model, IDS)
    assert torch.equal(one.chosen, again.chosen)
    assert not torch.equal(one.chosen, other.chosen)
    counts = {n: int(v.sum()) for n, v in parts(one, run).items()}
    assert counts == {n: p.numel() // 2 for n, p in run.model.named_parameters()}
    assert every.count == sum(p.numel() for p in run.model.parameters())


@pytest.mark.parametrize("ratio", [0.1, 0.6])
def test_the_threshold_of_each_layer_is_its_own(run: SmallRun, ratio: float) -> None:
    with opened(run) as open_run:
        chosen = parts(ThresholdUnits(ratio, threshold=1.0).choose(open_run, open_run.model, IDS), run)
        scores = scores_by_hand(run, dict(open_run.model.params), "outputs")
    for name, biased in (("0", True), ("2", False), ("5", True)):
        weights = chosen[f"{name}.weight"].flatten(1)
        units, inputs = weights.shape
        budget = int(ratio * units * (inputs + biased))
        level = 100
        while sum(float(s) > level / 100 for s in scores[name]) * (inputs + biased) < budget:
            level -= 1
        above = {u for u in range(units) if float(scores[name][u]) > level / 100}
        touched = weights.any(1) | (chosen[f"{name}.bias"] if biased else False)
        assert set(touched.nonzero()[:, 0].tolist()) <= above
        assert int(weights.sum()) + (int(chosen[f"{name}.bias"].sum()) if biased else 0) == budget


def test_masks_restrict_and_expand() -> None:
    mask = ParameterMask(torch.tensor([True, False, True]))
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert mask.restrict(rows).tolist() == [[1.0, 3.0], [4.0, 6.0]]
    assert mask.expand(mask.restrict(rows)).tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, 6.0]]


class Bare(SmallNet):
    """A net whose layers are frozen but for a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_bad_input_is_refused(run: SmallRun) -> None:
    for make in (
        lambda: HighestUnits(0.0),
        lambda: LowestUnits(1.5),
        lambda: ExclusiveUnits(0.6),
        lambda: RandomParameters(-1),
        lambda: ThresholdUnits(2.0),
    ):
        with pytest.raises(ConfigurationError, match="ratio"):
            make()
    with opened(run) as open_run:
        with pytest.raises(ConfigurationError, match="larger ratio"):
            HighestUnits(1e-6).choose(open_run, open_run.model, IDS)
        with pytest.raises(ConfigurationError, match="'outputs' or 'gradients'"):
            HighestUnits(by="losses").choose(open_run, open_run.model, IDS)  # type: ignore[arg-type]
    with opened(small_run(make=Bare)) as open_run, pytest.raises(ConfigurationError, match="AllParameters"):
        HighestUnits().choose(open_run, open_run.model, IDS)
