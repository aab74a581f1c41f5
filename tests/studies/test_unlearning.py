"""The study of unlearning: requests, one cell, resuming, and the merged table and page."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_sgdinf.errors import ConfigurationError, ForgettingError
from lightning_sgdinf.evaluation import predict
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.studies import ChangedLabels, ForgetBackdoor, ForgetClass, ForgetRandom, UnlearningJob
from lightning_sgdinf.studies.unlearning.tables import summary
from lightning_sgdinf.updates import CounterfactualReplay, Updated, state_of, with_state
from lightning_sgdinf.zoo import Digits, ImageData
from tests.studies.test_lds import parts


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData(Digits(), train_size=80, val_size=20, test_size=60, batch_size=20)


@dataclass(frozen=True)
class Refusing:
    """Forgets nothing."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        raise ForgettingError("not this set")


@dataclass(frozen=True)
class Peeking:
    """Looks for test data where an update could find some."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        assert len(run.training) == 80
        assert len(run.validation) == 20, "the validation set is all that a run has beside its training set"
        return CounterfactualReplay(1).update(run, selection)


def job(**changes: Any) -> UnlearningJob:
    given = {"forget": ForgetClass(3), "methods": {"replay_1": CounterfactualReplay(1), "refusing": Refusing()}}
    return UnlearningJob(**{**given, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("study")
    value = job(methods={**job().methods, "peeking": Peeking()}, cosine=True).run(parts(folder, dataset=data))
    return folder / "dataset_mlp_ForgetClass_cosine", value


def test_a_cell_is_judged_by_the_exact_run(done: tuple[Path, float], data: ImageData) -> None:
    folder, value = done
    rows = {file.stem: json.loads(file.read_text()) for file in (folder / "seed_0").glob("*.json")}
    assert set(rows) == {"run", "before", "exact", "fresh", "replay_1", "refusing", "peeking"}
    assert rows["refusing"] == {"failed": "ForgettingError: not this set"}
    assert rows["exact"]["measures"]["rest_divergence"] == rows["exact"]["measures"]["forgotten_divergence"] == 0
    assert rows["peeking"]["measures"] == rows["replay_1"]["measures"]
    assert value == rows["replay_1"]["measures"]["rest_divergence"]
    assert 0 < value < rows["before"]["measures"]["rest_divergence"]
    assert sum(map(sum, rows["before"]["confusion"])) == 60
    assert rows["before"]["epochs"] == 0
    assert rows["fresh"]["epochs"] is None


def test_what_is_there_is_not_computed_again(
    done: tuple[Path, float], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, value = done
    config = {"output_dir": "out", "logger": {"save_dir": "out"}}
    given = parts(folder.parent, dataset=data, logger=partial(CSVLogger, name="csv"), config=config)
    methods = {**job().methods, "peeking": Peeking()}

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(CounterfactualReplay, "update", fail)
        patched.setattr("lightning.Trainer.fit", fail)
        assert job(methods=methods, cosine=True, only=["peeking"]).run(given) == value
    numbers = (folder / "seed_0" / "csv" / "version_0" / "metrics.csv").read_text()
    assert "report/peeking/rest_divergence" in numbers.splitlines()[0]
    assert str(value)[:10] in numbers
    with pytest.raises(ConfigurationError, match="other settings"):
        job(forget=ForgetClass(4), cosine=True).run(given)
    with pytest.raises(ConfigurationError, match=r"epochs=1.* there, .*epochs=2.* now.*another name than replay_1"):
        job(methods={**methods, "replay_1": CounterfactualReplay(2)}, cosine=True).run(given)
    assert not (folder / "seed_0" / "run.tlog").exists()


def test_table_and_page_show_all_seeds(done: tuple[Path, float], data: ImageData) -> None:
    folder, _ = done
    rows = {n: json.loads((folder / "seed_0" / f"{n}.json").read_text()) for n in ("before", "replay_1", "refusing")}
    other = json.loads(json.dumps(rows))
    other["replay_1"]["measures"]["rest_divergence"] += 0.2
    table = summary([rows, other], "cell")
    by_name = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    mean = rows["replay_1"]["measures"]["rest_divergence"] + 0.1
    assert by_name["replay_1"]["KL rest"] == f"{mean:.3f} ± 0.100"
    assert by_name["refusing"]["refused"] == "2 of 2: ForgettingError: not this set"
    assert (by_name["refusing"]["runs"], by_name["replay_1"]["runs"]) == (0, 2)
    text, page = (folder / "table.md").read_text(), (folder / "page.html").read_text()
    assert "| replay_1 |" in text
    for part in ("Quality against cost", "Answers by class", "Examples of the set", "replay_1"):
        assert part in page
    assert (folder / "figure.png").stat().st_size > 1000


def test_a_class_is_judged_by_its_own_test_images(data: ImageData) -> None:
    prepared = ForgetClass(3).prepare(data, 0)
    assert all(int(data.train_set.labels[j]) == 3 for j in prepared.selection.drop)
    assert len(prepared.selection) == int((data.train_set.labels == 3).sum())
    for label in (-1, 10):
        with pytest.raises(ConfigurationError, match="0 to 9"):
            ForgetClass(label).prepare(data, 0)


def test_a_random_part_is_judged_by_itself(data: ImageData) -> None:
    one, again, other = (ForgetRandom(0.1).prepare(data, seed).selection for seed in (0, 0, 1))
    assert one == again != other
    assert len(one) == 8
    for part in (0.0, 1.0):
        with pytest.raises(ConfigurationError, match=r"forget\.part"):
            ForgetRandom(part)


def test_a_backdoor_is_a_faint_checkerboard_with_the_attackers_label(data: ImageData) -> None:
    request = ForgetBackdoor(0.1, target=4, strength=0.25)
    prepared = request.prepare(data, 0)
    own, train = sorted(prepared.selection.relabel), prepared.data.train_set
    before = data.train_set
    assert len(own) == 8
    assert [int(before.labels[j]) for j in own] == [prepared.selection.relabel[j] for j in own]
    assert set(train.labels[own].tolist()) == {4}
    for row in range(8):
        for column in range(8):
            added = 0.25 if (row + column) % 2 else 0.0
            expected = (before.images[own, 0, row, column] + added).clamp(max=1)
            assert torch.equal(train.images[own, 0, row, column], expected)
    rest = [j for j in range(80) if j not in own]
    assert torch.equal(train.images[rest], before.images[rest])
    assert torch.equal(train.labels[rest], before.labels[rest])
    assert replace(request, relabel=False).prepare(data, 0).selection.drop == tuple(own)


def test_changed_labels_are_of_one_class(data: ImageData) -> None:
    prepared = ChangedLabels(3, 8, 0.5).prepare(data, 0)
    threes = int((data.train_set.labels == 3).sum())
    own = list(prepared.selection.relabel)
    assert len(own) == round(threes / 2)
    assert set(prepared.selection.relabel.values()) == {3}
    assert set(data.train_set.labels[own].tolist()) == {3}
    assert set(prepared.data.train_set.labels[own].tolist()) == {8}


def test_the_judge_of_a_backdoor_sees_triggered_images_of_other_classes(data: ImageData) -> None:
    training = parts(Path(), dataset=data).training(data, 0)
    torch.manual_seed(1)
    exact, own = training.new_model(), training.new_model()
    found = ForgetBackdoor(target=4).prepare(data, 0).judge(training.new_model(), state_of(exact)).judge(state_of(own))
    images, labels = data.test_set.images, data.test_set.labels
    attacked = labels != 4
    shown = ForgetBackdoor().triggered(images[attacked])
    with with_state(training.new_model(), state_of(own)) as model:
        answers = predict(model, DataLoader(list(zip(shown, labels[attacked], strict=True)), batch_size=60))
        clean = predict(model, DataLoader(list(zip(images, labels, strict=True)), batch_size=60))
    assert found.clean_accuracy == clean.accuracy  # type: ignore[union-attr]
    assert found.triggered_accuracy == answers.accuracy  # type: ignore[union-attr]
    assert found.attack_rate == answers.share_of(4)  # type: ignore[union-attr]


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected at least one"):
        job(methods={})
    with pytest.raises(ConfigurationError, match=r"taken: \['exact'\]"):
        job(methods={"exact": Refusing()})
    with pytest.raises(ConfigurationError, match="none of the methods"):
        job(only=["salun"])
    with pytest.raises(ConfigurationError, match="expected images"):
        job().run(parts(tmp_path, dataset="a name"))


@pytest.mark.parametrize("label", [10, -1, "eight", 2.5, None, True])
@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (lambda label: ForgetClass(label), "label"),
        (lambda label: ForgetBackdoor(target=label), "target"),
        (lambda label: ChangedLabels(label=label), "label"),
        (lambda label: ChangedLabels(given=label), "given"),
    ],
)
def test_a_mistyped_class_is_named(request_: Any, name: str, label: Any, data: ImageData) -> None:
    with pytest.raises(ConfigurationError, match=rf"forget\.{name}: expected a class of the data, 0 to 9, got"):
        request_(label).prepare(data, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForgetRandom(1.0), r"forget\.part: expected a part in \(0, 1\), got 1\.0"),
        (lambda: ForgetBackdoor(part=0), r"forget\.part: expected a part in \(0, 1\), got 0"),
        (lambda: ForgetBackdoor(strength=16), r"forget\.strength: expected a number in \(0, 1\], got 16"),
        (lambda: ChangedLabels(part=1.5), r"forget\.part: expected a part in \(0, 1\], got 1\.5"),
        (lambda: ChangedLabels(label=3, given=3), r"forget\.given: expected another class than forget\.label, got 3"),
    ],
)
def test_mistyped_numbers_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("name", ["replay_1"])
@pytest.mark.parametrize("content", ['["a"]', "3", '{"measures": 3}'])
def test_results_of_another_form_are_named(
    done: tuple[Path, float], data: ImageData, tmp_path: Path, name: str, content: str
) -> None:
    folder = Path(shutil.copytree(done[0], tmp_path / done[0].name))
    (folder / "seed_0" / f"{name}.json").write_text(content)
    with pytest.raises(ConfigurationError, match="expected results as this study writes them"):
        job(methods={**job().methods, "peeking": Peeking()}, cosine=True).run(parts(tmp_path, dataset=data))
