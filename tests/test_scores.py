from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_sgdinf.certificate import Certificate, GradientCheck, StepReplay, Trust
from lightning_sgdinf.errors import (
    ConfigurationError,
    LogCorruptError,
    LogExistsError,
    LogNotFoundError,
    LogVersionError,
    MissingExtraError,
    NonFiniteError,
)
from lightning_sgdinf.log.arrays import write_arrays
from lightning_sgdinf.scores import Scores


def scores_of(*columns: list[float], **fields) -> Scores:
    values = torch.tensor(columns, dtype=torch.float64).T
    return Scores(values=values, queries=tuple(f"q{i}" for i in range(len(columns))), **fields)


@pytest.fixture
def full() -> Scores:
    per_epoch = torch.tensor(np.random.default_rng(0).normal(size=(3, 5, 2)))
    certificate = Certificate(
        level="full",
        step_replay=StepReplay(steps=7, bitwise=7, largest_deviation=0.0),
        gradient_check=GradientCheck(
            first_step=0,
            example_ids=(1, 2),
            predicted=(0.5, 1.0),
            measured=(0.5, 1.0),
            relative_error=1e-9,
            tolerance=1e-4,
        ),
        trust=Trust(
            first_step=0,
            example_ids=(1, 2),
            predicted=(0.1, 2.0),
            measured=(0.2, 1.9),
            correlation=0.99,
            low=0.9,
            high=1.0,
        ),
        notes=("the learning rate was constant",),
    )
    return Scores(
        values=per_epoch.sum(0),
        queries=("validation loss", "margin"),
        labels=("cat", "dog", "ÅΩ猫", "", "<b>"),
        per_epoch=per_epoch,
        certificate=certificate,
        provenance={"log": "9f3a", "seconds": 1.5, "versions": {"torch": "2"}, "list": [1, None, True]},
        better=("lower", "higher"),
        verified=torch.tensor([True, False, False, True, False]),
        standard_error=torch.tensor([[0.1, 0.2]] * 5),
    )


tied = st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 3.0]), min_size=1, max_size=12)


@given(tied, st.sampled_from(["lower", "higher"]), st.integers(1, 14))
def test_every_ranking_equals_a_sorted_list(values: list[float], better: str, k: int) -> None:
    scores = scores_of(values, better=(better,))
    harm = {j: (-v if better == "lower" else v) for j, v in enumerate(values)}
    harmful = sorted(harm, key=lambda j: (-harm[j], j))
    helpful = sorted(harm, key=lambda j: (harm[j], j))
    places = [1 + sum(harm[i] > harm[j] for i in harm) for j in harm]

    assert scores.order().tolist() == harmful
    assert scores.ranks().tolist() == places
    for ranking, ids in ((scores.most_harmful(k), harmful[:k]), (scores.most_helpful(k), helpful[:k])):
        assert list(ranking.example_ids) == ids
        assert list(ranking.scores) == [values[j] for j in ids]
        assert list(ranking.ranks) == [places[j] for j in ids]
        assert len(ranking) == len(ids)
        assert ranking.total == len(values)


@given(tied)
def test_turning_a_query_around_and_its_direction_too_changes_no_ranking(values: list[float]) -> None:
    loss = scores_of(values)
    gain = scores_of([-v for v in values], better=("higher",))
    assert loss.better == ("lower",)
    assert loss.order().tolist() == gain.order().tolist()
    assert loss.most_helpful(3).example_ids == gain.most_helpful(3).example_ids


def test_for_a_loss_the_example_whose_leaving_lowers_it_is_harmful() -> None:
    scores = scores_of([0.2, -0.7, 0.1], labels=("a", "b", "c"))
    (worst,) = scores.most_harmful(1)
    assert worst == (1, -0.7, 1, "b")
    assert (worst.example_id, worst.score, worst.rank, worst.label) == worst
    assert scores.harm().tolist() == [-0.2, 0.7, -0.1]
    assert scores.most_helpful(1).example_ids == (0,)


def test_for_an_accuracy_the_example_whose_leaving_raises_it_is_harmful() -> None:
    scores = scores_of([0.2, -0.7, 0.1], better=("higher",))
    assert scores.most_harmful(1).example_ids == (0,)
    assert scores.most_helpful(1).example_ids == (1,)
    assert scores.most_helpful(1).ranks == (3,)


def test_queries_are_found_by_name_and_by_position() -> None:
    scores = scores_of([1.0, 2.0], [5.0, -5.0])
    assert scores.most_harmful(1, "q1").example_ids == scores.most_harmful(1, 1).example_ids == (1,)
    assert scores.most_harmful(1, -1).query == "q1"
    assert scores.most_harmful(1, np.int64(1)).query == "q1"


@pytest.mark.parametrize("query", ["loss", 2, -3, True, None, 0.0])
def test_an_unknown_query_is_refused_with_those_there_are(query: object) -> None:
    with pytest.raises(ConfigurationError, match="0: 'q0', 1: 'q1'"):
        scores_of([1.0], [2.0]).order(query)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, -1])
def test_a_ranking_of_nothing_is_refused(k: int) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        scores_of([1.0]).most_harmful(k)
    with pytest.raises(ConfigurationError, match="at least 1"):
        scores_of([1.0]).most_helpful(k)


def test_values_are_kept_as_float64_apart_from_any_graph() -> None:
    leaf = torch.ones(2, 1, dtype=torch.float32, requires_grad=True)
    scores = Scores(values=leaf * 2, queries=("q",))
    assert scores.values.dtype == torch.float64
    assert not scores.values.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="example 2 for query 'q1'"):
        scores_of([1.0, 2.0, 3.0], [1.0, 2.0, bad])


def test_a_contribution_that_is_not_finite_is_named() -> None:
    per_epoch = torch.zeros(2, 3, 1)
    per_epoch[1, 2, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"example 2 .*epoch 1"):
        scores_of([0.0, 0.0, 0.0], per_epoch=per_epoch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": torch.zeros(3)}, r"shape \[N, 1\]"),
        ({"values": torch.zeros(3, 2)}, r"got \[3, 2\]"),
        ({"values": torch.zeros(0, 1)}, "at least one example"),
        ({"queries": ()}, "at least one name"),
        ({"queries": "q"}, "tuple of at least one name"),
        ({"values": torch.zeros(3, 2), "queries": ("a", "a")}, r"\['a'\] more than once"),
        ({"labels": ("a",)}, r"per example \(3\), got 1"),
        ({"better": ("lower", "higher")}, "for each of"),
        ({"better": ("smaller",)}, "'lower', 'higher' or 'order'"),
        ({"verified": torch.ones(2, dtype=torch.bool)}, r"shape \[3\], one per example, got \[2\]"),
        ({"per_epoch": torch.zeros(3, 1)}, r"\[E, 3, 1\]"),
        ({"per_epoch": torch.ones(2, 3, 1)}, "sum of 2 for example 0"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Scores(**{"values": torch.zeros(3, 1), "queries": ("q",), **fields})


def test_contributions_summed_in_single_precision_are_accepted() -> None:
    per_epoch = torch.tensor(np.random.default_rng(0).normal(size=(50, 20, 1)))
    Scores(values=per_epoch.float().sum(0), queries=("q",), per_epoch=per_epoch)


def assert_equal(a: Scores, b: Scores) -> None:
    for field in dataclasses.fields(Scores):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


def test_saving_and_loading_keeps_every_field(full: Scores, tmp_path: Path) -> None:
    assert all(getattr(full, field.name) is not None for field in dataclasses.fields(Scores)), "the test is degenerate"
    full.save(tmp_path / "scores.h5")
    assert_equal(Scores.load(tmp_path / "scores.h5"), full)


def test_saving_and_loading_keeps_what_is_absent(tmp_path: Path) -> None:
    bare = scores_of([1.0, -2.0])
    bare.save(tmp_path / "scores.h5")
    assert_equal(Scores.load(tmp_path / "scores.h5"), bare)


def test_labels_of_a_large_training_set_are_saved(tmp_path: Path) -> None:
    labels = tuple(f"label number {i}" for i in range(20_000))
    Scores(values=torch.zeros(20_000, 1), queries=("q",), labels=labels).save(tmp_path / "scores.h5")
    assert Scores.load(tmp_path / "scores.h5").labels == labels


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=20))
def test_loaded_values_are_bit_equal(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores.h5"
    scores_of(values).save(path)
    assert Scores.load(path).values.numpy().tobytes() == np.array(values).tobytes()


@pytest.mark.parametrize("write", ["save", "to_csv", "to_parquet"])
def test_nothing_is_overwritten_unasked(write: str, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("precious")
    with pytest.raises(LogExistsError, match="overwrite=True"):
        getattr(scores_of([1.0]), write)(path)
    assert path.read_text() == "precious"
    getattr(scores_of([1.0]), write)(path, overwrite=True)
    assert path.read_bytes() != b"precious"


def test_files_that_hold_no_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogNotFoundError):
        Scores.load(tmp_path / "nothing.h5")
    write_arrays(tmp_path / "other.h5", {}, {}, kind="sgdinf-other/1")
    with pytest.raises(LogVersionError):
        Scores.load(tmp_path / "other.h5")
    scores_of([1.0] * 1000).save(tmp_path / "torn.h5")
    content = (tmp_path / "torn.h5").read_bytes()
    (tmp_path / "torn.h5").write_bytes(
        content.replace(np.float64(1.0).tobytes() * 100, np.float64(2.0).tobytes() * 100)
    )
    with pytest.raises(LogCorruptError):
        Scores.load(tmp_path / "torn.h5")


def test_scores_can_be_copied_and_sent_to_other_processes(full: Scores) -> None:
    assert_equal(pickle.loads(pickle.dumps(full)), full)
    assert_equal(copy.deepcopy(full), full)
    assert dataclasses.replace(full, better=("higher", "lower")).better == ("higher", "lower")


def test_the_callers_provenance_is_not_shared() -> None:
    provenance = {"log": "9f3a"}
    scores = scores_of([1.0], provenance=provenance)
    provenance["log"] = "other"
    assert scores.provenance["log"] == "9f3a"


def test_a_frame_says_in_its_columns_what_they_hold(full: Scores) -> None:
    frame = full.to_frame()
    assert list(frame.columns) == [
        "example_id",
        "label",
        "verified",
        "change_of_validation loss_if_left_out",
        "standard_error_of_validation loss",
        "harm_rank_validation loss",
        "change_of_margin_if_left_out",
        "standard_error_of_margin",
        "harm_rank_margin",
    ]
    assert frame["verified"].tolist() == full.verified.tolist()
    worst = frame.sort_values("harm_rank_margin").iloc[0]
    assert worst["example_id"] == int(full.values[:, 1].argmax())
    assert worst["change_of_margin_if_left_out"] == float(full.values[:, 1].max())


def test_rankings_say_whose_scores_are_verified(full: Scores) -> None:
    ranking = full.most_harmful(3)
    assert ranking.verified == tuple(bool(full.verified[i]) for i in ranking.example_ids)
    assert [row[-1] for row in ranking.rows()] == ["verified", *("yes" if v else "no" for v in ranking.verified)]
    assert scores_of([1.0]).most_harmful(1).verified is None


def test_csv_and_parquet_read_back(full: Scores, tmp_path: Path) -> None:
    import pandas

    full.to_csv(tmp_path / "scores.csv")
    full.to_parquet(tmp_path / "scores.parquet")
    expected = full.to_frame()
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "scores.parquet"), expected)
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "scores.csv", keep_default_na=False), expected)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pandas", lambda s, path: s.to_frame()),
        ("pandas", lambda s, path: s.to_csv(path)),
        ("pyarrow", lambda s, path: s.to_parquet(path)),
    ],
)
def test_a_missing_package_is_answered_with_what_installs_it(
    module: str, use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'{module}.*pip install "lightning-sgdinf\[report\]"$'):
        use(scores_of([1.0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_print_their_size_and_queries(full: Scores) -> None:
    assert repr(full) == "Scores(5 training examples, queries=['validation loss', 'margin'], certificate=full)"
    assert len(full) == 5
    assert repr(scores_of([1.0])).endswith("certificate=none)")


def test_the_lowest_of_values_that_only_rank_is_the_most_harmful(tmp_path: Path) -> None:
    ranking = scores_of([0.5, -2.0, 1.0], better=("order",))
    assert ranking.order().tolist() == [1, 0, 2]
    assert ranking.harm().tolist() == [-0.5, 2.0, -1.0]
    assert list(ranking.to_frame().columns) == ["example_id", "q0", "harm_rank_q0"]
    ranking.save(tmp_path / "scores.h5")
    assert Scores.load(tmp_path / "scores.h5").better == ("order",)
