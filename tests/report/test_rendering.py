from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report import Example, Rendered, ReportData, SafeHtml, as_example
from lightning_sgdinf.scores import Scores


def test_images_of_any_layout_are_images() -> None:
    assert as_example(torch.zeros(3, 4, 5)).image.shape == (4, 5, 3)
    assert as_example(torch.zeros(1, 4, 5)).image.shape == (4, 5)
    assert as_example(np.zeros((4, 5, 3))).image.shape == (4, 5, 3)
    assert as_example(np.zeros((3, 4, 5))).image.shape == (4, 5, 3)
    assert as_example(np.zeros((4, 5))).image.shape == (4, 5)
    assert as_example(Image.new("RGB", (5, 4))).image.shape == (4, 5, 3)


def test_bytes_are_shades_and_normalised_pixels_are_spread() -> None:
    assert as_example(np.array([[0, 51, 255]], np.uint8)).image.tolist() == [[0, pytest.approx(0.2), 1]]
    assert as_example(np.array([[-1.0, 0.0, 3.0]])).image.tolist() == [[0, 0.25, 1]]
    assert as_example(np.array([[0.25, 0.5]])).image.tolist() == [[0.25, 0.5]]


@pytest.mark.parametrize(
    ("label", "text"),
    [(torch.tensor(1), "b"), (1, "b"), ("cat", "cat"), (2.5, "2.5"), (7, "7"), (torch.zeros(2), ""), (object(), "")],
)
def test_labels_are_named(label: object, text: str) -> None:
    assert as_example(("x", label), ["a", "b"]).label == text


def test_words_and_rows() -> None:
    assert as_example(("a text", 0)).text == "a text"
    row = as_example(({"age": np.int64(3), "share": np.float32(0.5), "new": True, "gone": None, "nan": math.nan},)).row
    assert list(row.values())[:4] == [3, 0.5, "yes", ""]
    assert math.isnan(row["nan"])
    vector = torch.tensor([1.5, 2.0])
    assert as_example(vector).row == {"input": "1.5 2"}, "one cell, however many numbers"
    assert Rendered(TensorDataset(vector[None]), column_names=("acid", "sugar"))[0].row == {"acid": 1.5, "sugar": 2.0}
    with pytest.raises(ConfigurationError, match="one for each of the 2 numbers of an example, got 1"):
        as_example(vector, (), ("acid",))


def test_mappings_are_shown_by_what_they_hold() -> None:
    shown = as_example({"signal": torch.tensor([0.5, -1.25]), "target": torch.tensor(1), "name": "s3"}, ["a", "b"])
    assert (shown.row, shown.label) == ({"signal": "0.5 -1.25", "name": "s3"}, "b")
    shown = as_example({"image": torch.zeros(3, 4, 5), "label": 2, "size": np.array([7])})
    assert (np.shape(shown.image), shown.label, shown.row) == ((4, 5, 3), "2", {"size": 7})
    assert np.shape(as_example({"image": Image.new("L", (5, 4))}).image) == (4, 5)
    shown = as_example({"text": "a post", "label": 0})
    assert (shown.text, shown.label) == ("a post", "0")
    row = as_example({"ids": list(range(100, 130)), "mask": torch.ones(4, 9), "ragged": [[1], [2, 3]]}).row
    assert row["ids"] == "100 101 102 103 104 105 106 107 108 109 110 111 … (30 numbers)"
    assert (row["mask"], row["ragged"]) == ("ndarray of shape [4, 9]", "[[1], [2, 3]]")
    several = as_example({"labels": torch.tensor([1, 2])})  # of tokens, say: no label of the example
    assert (several.label, several.row) == ("", {"labels": "1 2"})


@pytest.mark.parametrize("item", [torch.zeros(2, 2, 2, 2), torch.zeros(1000), object(), torch.zeros(5, 5, 5)])
def test_what_cannot_be_shown_says_so(item: object) -> None:
    with pytest.raises(ConfigurationError, match="give a renderer"):
        as_example(item)


def test_a_data_set_is_rendered_when_it_is_looked_at() -> None:
    looked: list[int] = []

    def renderer(item: int) -> Example | SafeHtml:
        looked.append(item)
        return SafeHtml(f"<b>{item}</b>") if item else Example(text="first")

    rendered = Rendered(range(3), renderer)
    assert len(rendered) == 3
    assert list(rendered) == [0, 1, 2]
    assert 3 not in rendered
    assert rendered.get(7) is None
    assert looked == []
    assert rendered[0].text == "first"
    assert rendered[2].html == SafeHtml("<b>2</b>")
    assert looked == [0, 2]


def test_plain_strings_are_never_taken_for_html() -> None:
    with pytest.raises(ConfigurationError, match=r"expected an Example or SafeHtml for example 1, got str"):
        Rendered(range(2), lambda item: f"<b>{item}</b>")[1]  # type: ignore[arg-type, return-value]


def test_a_report_takes_a_data_set_as_it_is() -> None:
    scores = Scores(values=torch.zeros(4, 1), queries=("q",))
    dataset = TensorDataset(torch.zeros(4, 1, 2, 2), torch.arange(4))
    data = ReportData(title="", scores=scores, examples=dataset)
    assert data.examples[3].label == "3"
    with pytest.raises(ConfigurationError, match="0 to 3"):
        ReportData(title="", scores=scores, examples=TensorDataset(torch.zeros(5, 1, 2, 2)))
