"""Batches as bytes: the same structure, types and values come back."""

from __future__ import annotations

from collections import UserDict, defaultdict, namedtuple
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sgdinf.errors import LogCorruptError
from lightning_sgdinf.log.batch_bytes import decode_batch, encode_batch, first_row_only, row_count
from lightning_sgdinf.log.batch_digest import batch_digest

Pair = namedtuple("Pair", ["x", "y"])

BATCHES: dict[str, Any] = {
    "images and labels": [torch.rand(3, 1, 4, 4), torch.tensor([1, 0, 2])],
    "dict": {"x": torch.arange(6).view(2, 3), 3: (torch.tensor(True), None), "name": ["a", "é\ud800", ""]},
    "numbers": (1, -(2**70), True, 2.5, float("nan"), float("-inf"), -0.0, "s", b"bytes", None),
    "halves": [torch.rand(5).bfloat16(), torch.rand(3).half(), torch.rand(2).to(torch.complex64)],
    "odd shapes": [torch.empty(0, 3), torch.tensor(7.0), torch.rand(4, 6)[::2, 1::2], torch.rand(2, 2).t()],
    "arrays": {"a": np.arange(4, dtype=">i2"), "b": np.float32(2.5), "c": np.zeros((2, 0)), "d": np.array(3)},
    "named": Pair(torch.ones(2), [Pair(1, 2)]),
    "default dict": defaultdict(list, k=[1]),
    "empty": [],
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.shape == b.shape and np.array_equal(a, b) and a.dtype.kind == b.dtype.kind
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b)) and getattr(a, "_fields", 0) == getattr(b, "_fields", 0)
    return repr(a) == repr(b) and type(a) is type(b)


@pytest.mark.parametrize("name", BATCHES)
def test_what_goes_in_comes_out(name: str) -> None:
    decoded = decode_batch(encode_batch(BATCHES[name]))
    assert same(BATCHES[name], decoded)
    if name not in ("arrays", "named"):  # byte order; the class of a named tuple
        assert batch_digest(decoded) == batch_digest(BATCHES[name])


def test_nothing_is_shared_with_the_batch() -> None:
    batch = [torch.ones(3)]
    data = encode_batch(batch)
    batch[0].zero_()
    first, second = decode_batch(data), decode_batch(data)
    first[0].fill_(5)
    assert second[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"x": [0, object()]}, r"batch\['x'\]\[1\] is a builtins.object"),
        ([UserDict(a=1)], r"batch\[0\] is a collections.UserDict"),
        (Pair(1, torch.eye(2).to_sparse()), r"batch\.y is a tensor that is sparse"),
        ({"x": np.array(["text"])}, r"batch\['x'\] is a numpy.ndarray"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        encode_batch(value)


def test_rows() -> None:
    batch = {"n": 3, "x": torch.arange(6.0).view(3, 2), "scale": torch.ones(2), "y": np.arange(3)}
    assert row_count(batch) == 3
    assert row_count({"n": 3, "x": torch.tensor(1)}) is None
    first = decode_batch(first_row_only(encode_batch(batch)))
    assert first["x"].tolist() == [[0, 1]] * 3
    assert first["y"].tolist() == [0, 0, 0]
    assert first["scale"].tolist() == [1, 1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_other_bytes_are_an_error_or_a_batch(data: st.DataObject) -> None:
    whole = bytearray(encode_batch(BATCHES[data.draw(st.sampled_from(sorted(BATCHES)))]))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(LogCorruptError):
        decode_batch(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
