from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import (
    Census,
    LabelledVectors,
    Posts,
    VectorData,
    logistic_regression,
    mlp,
    mnist_net,
    six_conv_net,
    small_cnn,
)
from tests.zoo.documents import write_census, write_posts


class Numbered:
    """Vectors that hold their own number."""

    def __init__(self, count: int, test: int = 12) -> None:
        self.counts = (count, test)

    def read(self) -> tuple[LabelledVectors, LabelledVectors]:
        return self._part(0, self.counts[0]), self._part(1000, self.counts[1])

    @staticmethod
    def _part(first: int, count: int) -> LabelledVectors:
        ids = torch.arange(first, first + count)
        texts = [f"text {i}" for i in ids.tolist()]
        return LabelledVectors(
            inputs=ids[:, None].float().expand(-1, 3), labels=ids % 2, class_names=("even", "odd"), originals=texts
        )


def test_parts_are_disjoint_and_keep_their_originals() -> None:
    data = VectorData(Numbered(60), val_size=10, test_size=5, label_noise=0.2, batch_size=7)
    parts = [data.train_set, data.val_set, data.test_set]
    assert [len(part) for part in parts] == [50, 10, 5]
    numbers = [part.inputs[:, 0].int().tolist() for part in parts]
    assert set(numbers[0]) | set(numbers[1]) == set(range(60))
    for part, own in zip(parts, numbers, strict=True):
        assert [part.shown(i) for i in range(len(part))] == [f"text {number}" for number in own]
    assert data.flipped is not None
    assert int(data.flipped.sum()) == 10
    assert torch.equal(data.true_labels, data.train_set.inputs[:, 0].long() % 2)
    assert torch.equal(data.flipped, data.train_set.labels != data.true_labels)
    assert data.input_shape == (3,)
    assert data.train_set.unaugmented() is data.train_set


def test_the_order_of_training_is_the_same_for_every_loader() -> None:
    data = VectorData(Numbered(30), val_size=10, batch_size=6, seed=3)
    orders = [torch.cat([inputs[:, 0] for inputs, _ in data.train_dataloader()]) for _ in range(2)]
    assert torch.equal(*orders)
    assert not torch.equal(orders[0], data.train_set.inputs[:, 0])
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 10
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 12
    assert data.flipped is None


def test_validation_stays_when_training_shrinks() -> None:
    large, small = (VectorData(Numbered(60), val_size=10, train_size=size) for size in (50, 20))
    assert torch.equal(large.val_set.inputs, small.val_set.inputs)
    assert len(small.train_set) == 20


@pytest.mark.parametrize(
    "sizes", [{"val_size": 60}, {"val_size": 10, "train_size": 51}, {"val_size": 1, "test_size": 13}]
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        VectorData(Numbered(60), **sizes)


def test_networks_for_images_refuse_vectors() -> None:
    assert logistic_regression((5,), 2)(torch.zeros(3, 5)).shape == (3, 2)
    assert mlp((5,), 2, hidden=(4,))(torch.zeros(3, 5)).shape == (3, 2)
    for network in (small_cnn, mnist_net, six_conv_net):
        with pytest.raises(ConfigurationError, match=r"got inputs of shape \[5\]; use model=logreg"):
            network((5,), 2)


def test_posts_keep_their_texts(tmp_path: Path) -> None:
    write_posts(tmp_path / "20news")
    train, test = Posts(tmp_path, words=5, download=False).read()
    assert train.class_names == ("ibm", "mac")
    assert len(train) == 59, "a post without words of its own is no example"
    assert len(test) == 20
    assert train.inputs.shape[1] == 5
    lengths = train.inputs.norm(dim=1)
    assert torch.allclose(lengths[lengths > 0], torch.ones(1))
    assert train.originals[0].startswith("Number 0: ")
    assert "From:" not in train.originals[0]
    labels = {text.split()[1]: label for text, label in zip(train.originals, train.labels.tolist(), strict=True)}
    assert labels["0:"] == 0
    assert labels["1:"] == 1


def test_posts_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    with pytest.raises(ConfigurationError, match="no 20news-bydate-ibm-mac"):
        Posts(tmp_path, download=False).read()
    with pytest.raises(ConfigurationError, match="allow download"):
        Posts(tmp_path, groups=["sci.med", "sci.space"], download=False).read()
    with pytest.raises(ConfigurationError, match="two newsgroups or more"):
        Posts(tmp_path, groups=["sci.med", "sci.med"])

    def unreachable(**options: object) -> None:
        raise OSError(f"unreachable: {options['categories']}")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", unreachable)
    with pytest.raises(ConfigurationError, match=r"fetching all newsgroups failed \(unreachable: None\)"):
        Posts(tmp_path, groups=None).read()


def test_other_groups_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets
    from sklearn.utils import Bunch

    def fetched(*, subset: str, categories: tuple[str, ...], **_: object) -> Bunch:
        texts = [f"{subset} alpha beta", "gamma", "  \n", "gamma delta", "alpha delta", "beta epsilon"]
        groups = torch.tensor([0, 1, 1, 0, 1, 0]).numpy()
        return Bunch(data=texts, target=groups, target_names=sorted(categories))

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetched)
    train, test = Posts(tmp_path, groups=["sci.space", "sci.med"]).read()
    assert train.class_names == ("sci.med", "sci.space")
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 0, 1, 0]
    assert test.originals[0] == "test alpha beta"


def test_people_keep_their_rows(tmp_path: Path) -> None:
    write_census(tmp_path / "adult")
    train, test = Census(tmp_path, train_rows=60, download=False).read()
    assert (len(train), len(test)) == (60, 20)
    assert torch.allclose(train.inputs.mean(0), torch.zeros(1), atol=1e-5)
    row = train.originals[1]
    assert isinstance(row, dict)
    assert (row["age"], row["capital-gain"], row["native-country"]) == (21, 5000, "Cuba")
    assert "income" not in row, "the label is no input"
    assert train.labels.tolist() == [0, 1] * 30
    assert test.labels.tolist() == [0, 1] * 10


def test_the_real_posts_and_people(data_dir: Path) -> None:
    if not (data_dir / "20news").is_dir() or not (data_dir / "adult").is_dir():
        pytest.skip(f"no 20news or adult in {data_dir}")
    train, test = Posts(data_dir, words=100, download=False).read()
    assert (len(train), len(test)) == (1136, 757)
    rows = Census(data_dir, download=False).adult.rows()
    assert len(rows) == 48_842
    assert rows[32_561][0] == "25", "where the test file begins"
