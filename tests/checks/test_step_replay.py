"""Deviations of states that steps lead to from recorded ones, against a reading element by element."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_sgdinf.checks import step_replay
from lightning_sgdinf.checks.step_replay import _deviations, _same
from lightning_sgdinf.parameters import ParameterVector

NUMBERS = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e-30, 1e30]))


def by_element(value, recorded, before):
    """Return the largest difference over the largest movement, in plain Python."""
    gap = moved = largest = 0.0
    for now, then, earlier in zip(value, recorded, before, strict=True):
        if not (now == then or (math.isnan(now) and math.isnan(then))):
            distance = abs(now - then)
            gap = math.inf if math.isnan(distance) or math.isnan(gap) else max(gap, distance)
        if math.isfinite(then):
            largest = max(largest, abs(then))
            if math.isfinite(earlier):
                moved = max(moved, abs(then - earlier))
    size = moved or largest
    return gap / size if size else gap


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=5), min_size=1, max_size=6), st.booleans())
def test_deviations_are_those_of_every_element(tensors, small_chunks):
    differing = []
    for elements in tensors:
        parts = [torch.tensor([e[k] for e in elements], dtype=torch.float32) for k in range(3)]
        differing.append(("x", *parts))
    with pytest.MonkeyPatch.context() as patch:
        if small_chunks:
            patch.setattr(step_replay, "CHUNK", 2)
        found = _deviations(differing)
    for (_, *parts), deviation in zip(differing, found, strict=True):
        expected = by_element(*(p.double().tolist() for p in parts))
        if math.isfinite(expected):
            assert deviation == pytest.approx(expected, rel=1e-5, abs=1e-30)
        else:  # not a number, or infinite: refused either way
            assert not deviation <= 1e30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("numbers", [3, step_replay.CHUNK + 7])
def test_a_single_element_that_is_off_is_found(dtype, numbers):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(numbers, generator=generator).to(dtype)
    recorded = before + torch.where(torch.arange(numbers) == 1, 0.5, 0.125).to(dtype)
    value = recorded.clone()
    value[-1] += 0.25
    moved = float((recorded.double() - before.double()).abs().max())
    expected = float((value[-1].double() - recorded[-1].double()).abs()) / moved
    assert _deviations([("x", value, recorded, before)]) == [pytest.approx(expected)]


def test_equal_is_equal_in_numbers_and_not_a_number_in_place():
    nan = torch.tensor([math.nan, 1.0])
    assert _same(nan, nan.clone())
    assert _same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not _same(nan, nan.flip(0))
    assert not _same(torch.ones(2), torch.ones(2, 1))
    assert _same(torch.arange(6).view(2, 3).T, torch.arange(6).view(2, 3).T.contiguous())


@pytest.mark.parametrize("size", [3, 400])
def test_projections_are_those_of_the_joined_vector(size):
    generator = torch.Generator().manual_seed(1)
    vector = ParameterVector(("a", "b", "c"), ((size, size), (), (5,)))
    whole = [torch.randn(s, generator=generator, dtype=torch.float64) for s in vector.shapes]
    rows = torch.randn(2, vector.size, generator=generator, dtype=torch.float64)
    for missing in (None, 0, 1):
        tensors = [None if k == missing else t for k, t in enumerate(whole)]
        joined = torch.cat([torch.zeros_like(t).view(-1) if k == missing else t.view(-1) for k, t in enumerate(whole)])
        products, norm = vector.project(tensors, rows)
        assert torch.allclose(products, (rows * joined).sum(1), rtol=1e-12)
        assert float(norm) == pytest.approx(float(joined.square().sum().sqrt()), rel=1e-12)
    products, norm = vector.project([None] * 3, rows)
    assert products.tolist() == [0.0, 0.0]
    assert float(norm) == 0.0
