"""Two classes of vectors: what the sources read, how parts are drawn, in which order, and the penalised loss."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo import (
    Adult,
    BinaryData,
    BinaryExamples,
    DigitPair,
    EpochOrder,
    NewsHardware,
    PenalisedClassifier,
    cross_validated_penalty,
    mlp,
)
from tests.tasks.test_configuration import write_tiny_mnist

ROWS = [
    ("39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical", "White, Male, 2174, 0, 40, Cuba, <=50K"),
    ("50, ?, 83311, 7th-8th, 13, Married-AF-spouse, Armed-Forces", "White, Male, 0, 0, 13, ?, >50K"),
    ("38, Without-pay, 215646, 11th, 9, Divorced, ?", "White, Female, 0, 5, 40, Peru, <=50K\n"),
]
PEOPLE = "\n".join(
    f"{start}, {who}, {rest}" for (start, rest), who in zip(ROWS, ("Own", "Husband", "Own"), strict=True)
)
OTHERS = """|1x3 Cross validator
25, Private, 226802, HS-grad, 7, Never-married, Sales, Own-child, Black, Male, 0, 0, 40, Haiti, >50K.
"""


def adult(folder: Path, *, people: str = PEOPLE, compressed: bool = False) -> Adult:
    (folder / "adult").mkdir()
    for name, text in (("adult-training.csv", people), ("adult-test.csv", OTHERS)):
        if compressed:
            (folder / "adult" / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / "adult" / name).write_text(text)
    return Adult(folder, download=False)


@pytest.mark.parametrize("compressed", [False, True])
def test_adult(tmp_path: Path, compressed: bool) -> None:
    people = adult(tmp_path, compressed=compressed).read()
    assert people.labels.tolist() == [0, 1, 0, 1]
    assert people.class_names == ("<=50K", ">50K")
    x = people.inputs
    assert x[:, 0].tolist() == [39, 50, 38, 25]
    # workclass: missing, Never-worked (Without-pay joins it), Private, State-gov
    assert x[:, 1:5].tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert np.allclose(x[:, 5], np.log1p([77516, 83311, 215646, 226802]))
    # education: Bachelors, HS-grad, Primary (all that end before the 12th class)
    assert x[:, 6:9].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0]]
    # country: the missing one and Cuba go with the United States, Peru with Haiti
    assert x[:, -2:].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    # six numbers; workclass 4, education 3, status 3 (AF spouse is a spouse), occupation 3 (Armed-Forces is none),
    # relationship 3, race 2, sex 2, country 2
    assert x.shape == (4, 6 + 4 + 3 + 3 + 3 + 3 + 2 + 2 + 2)


def test_adult_that_is_damaged_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="adult: no adult-training"):
        Adult(tmp_path, download=False).read()
    with pytest.raises(ConfigurationError, match=r"adult-training\.csv, byte 209: expected 15 columns, row 2 has 4"):
        adult(tmp_path, people=PEOPLE[: PEOPLE.index("Without-pay") + 20]).read()
    (tmp_path / "two").mkdir()
    with pytest.raises(ConfigurationError, match="column 'age' is not a number"):
        adult(tmp_path / "two", people=PEOPLE.replace("39,", "many,")).read()


POSTS = {
    "20news-bydate-train/comp.sys.ibm.pc.hardware/1": "From: a\n\nfloppy drive fails\nfloppy again",
    "20news-bydate-train/comp.sys.mac.hardware/2": "From: b\n\nquadra memory\n\n-- \nmy signature",
    "20news-bydate-train/comp.sys.mac.hardware/3": "From: c\n\n> floppy drive fails\n\nquadra monitor",
    "20news-bydate-train/comp.sys.ibm.pc.hardware/4": "From: d\n\nvlb card",
    "20news-bydate-train/comp.sys.ibm.pc.hardware/5": "From: e\n\nvlb bios",
    "20news-bydate-train/comp.sys.ibm.pc.hardware/6": "From: f\n\nirq conflict",
    "20news-bydate-test/comp.sys.mac.hardware/7": "From: g\n\nquadra unknown",
}


def news(folder: Path, order: list[str] | None = None) -> NewsHardware:
    (folder / "20news").mkdir(exist_ok=True)
    with tarfile.open(folder / "20news" / "20news-bydate-ibm-mac.tar.gz", "w:gz") as archive:
        for name, text in POSTS.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode("latin1")))
    if order is not None:
        (folder / "20news" / "order_train.txt").write_text("\n".join(order))
    return NewsHardware(folder, download=False)


def test_newsgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.feature_extraction import text as sklearn_text

    made: list[Any] = []

    class Spy(sklearn_text.TfidfVectorizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(sklearn_text, "TfidfVectorizer", Spy)
    order = [
        f"20news-bydate-train/comp.sys.{'mac' if i in (2, 3) else 'ibm.pc'}.hardware/{i}" for i in (6, 2, 3, 1, 5, 4)
    ]
    posts = news(tmp_path, order).read()
    assert posts.labels.tolist() == [0, 1, 1, 0, 0, 0, 1]
    assert (made[0].stop_words, made[0].min_df, made[0].max_df) == ("english", 0.001, 0.2)
    words = list(made[0].get_feature_names_out())
    # Headers, quotes and last paragraphs are gone (all of post 3); vlb is in more than a fifth of the training posts.
    assert words == ["bios", "card", "conflict", "drive", "fails", "floppy", "irq", "memory", "quadra"]
    assert posts.inputs.shape == (7, 9)
    assert np.flatnonzero(posts.inputs[:, words.index("floppy")]).tolist() == [3]
    assert np.flatnonzero(posts.inputs[6]).tolist() == [words.index("quadra")]
    assert np.allclose(np.linalg.norm(posts.inputs, axis=1), [1, 1, 0, 1, 1, 1, 1])


def test_newsgroups_without_a_list_or_without_posts(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="20news: no 20news-bydate-ibm"):
        NewsHardware(tmp_path, download=False).read()
    assert news(tmp_path).read().labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    with pytest.raises(ConfigurationError, match=r"1 posts of order_train.txt are not in it"):
        news(tmp_path, ["20news-bydate-train/comp.sys.mac.hardware/9"]).read()
    (tmp_path / "20news" / "20news-bydate-ibm-mac.tar.gz").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="byte 0: expected gzip data"):
        NewsHardware(tmp_path, download=False).read()


def test_two_digits(tmp_path: Path) -> None:
    write_tiny_mnist(tmp_path / "mnist")  # labels 0 1 2 ... 9 0 1 ...
    digits = DigitPair(tmp_path, digits=(1, 7), skip=5, download=False).read()
    assert digits.labels.tolist() == [0, 1, 1]  # of 1 at 1, 11 and 7 at 7, 17 those from 5 on
    assert digits.inputs.shape == (3, 784)
    assert digits.class_names == ("1", "7")


def blobs(count: int = 60, width: int = 3) -> BinaryExamples:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, count)
    return BinaryExamples(
        inputs=draw.standard_normal((count, width)) + labels[:, None], labels=labels, class_names=("a", "b")
    )


def test_parts_are_disjoint_and_standardised_by_the_training_part() -> None:
    examples = blobs()
    data = BinaryData(examples, size=20, seed=3)
    parts = [data.train_set, data.val_set, data.test_set]
    assert [len(p) for p in parts] == [20, 20, 20]
    assert torch.allclose(data.train_set.inputs.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(data.train_set.inputs.std(0, correction=0), torch.ones(3), atol=1e-5)
    assert data.val_set.inputs.mean(0).abs().max() > 0.01
    everything = torch.cat([p.inputs for p in parts])
    assert len({tuple(row) for row in everything.tolist()}) == 60
    assert sorted(torch.cat([p.labels for p in parts]).tolist()) == sorted(examples.labels.tolist())
    assert torch.equal(BinaryData(examples, size=20, seed=3).val_set.inputs, data.val_set.inputs)
    assert not torch.equal(BinaryData(examples, size=20, seed=4).val_set.inputs, data.val_set.inputs)
    assert data.dimensions == 3
    with pytest.raises(ConfigurationError, match="expected 1 to 20"):
        BinaryData(examples, size=21)


def test_order_of_an_epoch_is_numpys_for_that_seed() -> None:
    order = EpochOrder(9)
    for epoch in (0, 3, 3):
        order.set_epoch(epoch)
        np.random.seed(epoch)
        assert list(order) == np.random.permutation(9).tolist()


def test_a_trainer_moves_the_order_on() -> None:
    data = BinaryData(blobs(), size=20, batch_size=8)
    seen: list[int] = []

    class Watching(PenalisedClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            rows = [tuple(row) for row in data.train_set.inputs.tolist()]
            seen.extend(rows.index(tuple(row)) for row in batch[0].tolist())
            return super().training_step(batch, batch_idx)

    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    model = Watching(nn.Linear(3, 1), penalty=0.1, lr=0.4, decay=True)
    trainer.fit(model, data)
    assert seen == [j for epoch in range(3) for j in np.random.RandomState(epoch).permutation(20).tolist()]
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.4 / 10**0.5)  # nine steps were taken; the tenth would be taken with this


def test_penalty_is_in_every_examples_loss() -> None:
    model = PenalisedClassifier(mlp((3,), 1, hidden=(4,)), penalty=0.3, lr=0.1)
    batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    logits = model(batch[0]).detach()
    assert logits.shape == (5,)
    p = torch.sigmoid(logits)
    cross = -torch.where(batch[1] == 1, p.log(), (1 - p).log())
    penalty = 0.15 * sum(float((w.detach() ** 2).sum()) for w in model.parameters())
    assert torch.allclose(model.per_example_loss(batch, 0), cross + penalty)
    assert torch.allclose(model.training_step(batch, 0), cross.mean() + penalty)
    assert torch.allclose(model.validation_step(batch, 0), cross.mean())


def test_cross_validated_penalty_is_one_of_the_grid() -> None:
    data = BinaryData(blobs(), size=20)
    penalty = cross_validated_penalty(data.train_set.inputs, data.train_set.labels, seed=0)
    assert np.isclose(1 / (20 * penalty), np.logspace(-4, 4, 10)).any()
