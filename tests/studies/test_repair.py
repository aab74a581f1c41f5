"""The study of repair: corruptions, causes, one cell, resuming, and the merged tables and page."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_sgdinf.baselines import AreaUnderMargin, RandomBaseline, TwoModels
from lightning_sgdinf.cleansing import IteratedMargins
from lightning_sgdinf.errors import ConfigurationError, DivergenceError
from lightning_sgdinf.estimators import FisherLinear
from lightning_sgdinf.evaluation import RepairJudge
from lightning_sgdinf.replay import OpenedRun
from lightning_sgdinf.selection import Selection
from lightning_sgdinf.studies import (
    BlamedBy,
    CombinedCauses,
    CorruptedInputs,
    CorruptedLabels,
    KnownCorrupt,
    MissingGroup,
    Proposed,
    RankedBy,
    RepairJob,
)
from lightning_sgdinf.studies.repair.tables import identification, treatments
from lightning_sgdinf.updates import CounterfactualReplay, Updated, state_of
from lightning_sgdinf.updates.repair import EwcAscent, Failures
from lightning_sgdinf.zoo import Digits, ImageData
from tests.studies.test_lds import parts


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData(Digits(), train_size=80, val_size=40, test_size=60, batch_size=20, label_noise=0.2)


@dataclass(frozen=True)
class Refusing:
    """Changes nothing."""

    def update(self, run: OpenedRun, selection: Selection) -> Updated:
        raise DivergenceError("not this set")


CAUSES: dict[str, Any] = {
    "aum": RankedBy(AreaUnderMargin(states=2, share=1.0)),
    "own": RankedBy(AreaUnderMargin(states=2, share=1.0), own_number=True),
    "blame": BlamedBy(FisherLinear()),
    "half": BlamedBy(FisherLinear(), asked="half"),
    "two": RankedBy(partial(TwoModels)),
    "both": CombinedCauses("blame", "aum"),
    "known": KnownCorrupt(),
    "iterated": Proposed(IteratedMargins(rounds=1, fractions=(0.1, 0.2), thresholds=(0.3,), states=2)),
    "random": RankedBy(RandomBaseline()),
}


def job(**changes: Any) -> RepairJob:
    given: dict[str, Any] = {
        "corruption": CorruptedLabels(),
        "causes": CAUSES,
        "treatments": {"replay": CounterfactualReplay(), "refusing": Refusing(), "ascent": partial(EwcAscent)},
        "identify": ["known", "iterated"],
        "also_rank": ["both", "two", "own", "half", "aum", "random"],
        "treat": ["replay", "refusing", "ascent", "fresh"],
        "part": 0.2,
        "fresh_runs": 2,
    }
    return RepairJob(**{**given, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("study")
    value = job().run(parts(folder, dataset=data))
    return folder / "dataset_mlp_CorruptedLabels_noise", value


def rows_of(folder: Path, kind: str) -> dict[str, Any]:
    return {file.stem: json.loads(file.read_text()) for file in (folder / "seed_0" / kind).glob("*.json")}


def test_causes_are_judged_by_what_is_really_wrong(done: tuple[Path, float], data: ImageData) -> None:
    causes = rows_of(done[0], "causes")
    assert set(causes) == {"known", "iterated", "random", "both", "two", "own", "half", "aum"}
    assert causes["known"]["precision"] == causes["known"]["auroc"] == 1
    assert causes["known"]["size"] == 16
    wrong = data.flipped
    assert wrong is not None
    for row in causes.values():
        ids = [*row["selection"]["drop"], *map(int, row["selection"]["relabel"])]
        assert row["size"] == len(ids) == len(set(ids))
        assert row["precision"] == (pytest.approx(float(wrong[ids].double().mean())) if ids else None)
    assert causes["own"]["size"] == round(causes["aum"]["positive"] * 80)
    assert causes["aum"]["precision_at"]["16"] == causes["aum"]["precision"]
    relabel = causes["iterated"]["selection"]["relabel"]
    if relabel:
        right = sum(int(data.true_labels[int(j)]) == c for j, c in relabel.items()) / len(relabel)
        assert causes["iterated"]["right_labels"] == pytest.approx(right)


def test_treatments_are_judged_on_what_nobody_looked_at(done: tuple[Path, float]) -> None:
    folder, value = done
    before, treated = rows_of(folder, "before")["run"], rows_of(folder, "treated")
    assert set(treated) == {
        f"{c}__{t}" for c in ("known", "iterated", "random") for t in ("replay", "refusing", "ascent", "fresh")
    }
    assert treated["known__refusing"] == {"failed": "DivergenceError: not this set"}
    assert value == treated["known__replay"]["measures"]["test_loss"] != before["measures"]["test_loss"]
    for row in treated.values():
        if "measures" in row:
            m = row["measures"]
            assert m["net"] == m["fixed"] - m["broken"]
            assert m["failures"] == before["measures"]["failures"] == len(before["held_out"]) == len(row["answers"])
    assert before["measures"]["fixed"] == before["measures"]["broken"] == 0
    assert "measures" in treated["known__ascent"], "it was not given the failures"


def test_what_is_there_is_not_computed_again(
    done: tuple[Path, float], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, value = done
    config = {"output_dir": "out", "logger": {"save_dir": "out"}}
    given = parts(folder.parent, dataset=data, logger=partial(CSVLogger, name="csv"), config=config)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(CounterfactualReplay, "update", fail)
        patched.setattr("lightning.Trainer.fit", fail)
        assert job().run(given) == value
    numbers = (folder / "seed_0" / "csv" / "version_0" / "metrics.csv").read_text()
    assert "report/known/replay/test_loss" in numbers.splitlines()[0]
    with pytest.raises(ConfigurationError, match="other settings"):
        job(part=0.3).run(given)
    assert not (folder / "seed_0" / "run.tlog").exists()


def test_tables_and_page_show_all_seeds(done: tuple[Path, float]) -> None:
    folder, _ = done
    seed = {
        "causes": rows_of(folder, "causes"),
        "treated": {
            "none": {"before": rows_of(folder, "before")["run"]},
            "known": {t: rows_of(folder, "treated")[f"known__{t}"] for t in ("replay", "refusing")},
        },
    }
    other = json.loads(json.dumps(seed))
    other["treated"]["known"]["replay"]["measures"]["test_loss"] += 0.2
    table = treatments([seed, other], "cell")
    by_name = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    before, after = (
        seed["treated"]["none"]["before"]["measures"]["test_loss"],
        seed["treated"]["known"]["replay"]["measures"]["test_loss"],
    )
    assert by_name["known", "replay"]["test loss"] == f"{after + 0.1:.3f} ± 0.100"
    assert by_name["known", "replay"]["change of test loss"] == f"{after - before + 0.1:.3f} ± 0.100"
    assert by_name["known", "refusing"]["refused"] == "2 of 2: DivergenceError: not this set"
    own = identification([seed, other], "cell")
    assert {row[0]: dict(zip(own.columns, row, strict=True))["precision"] for row in own.rows}["known"] == "1.00 ± 0.00"
    text, page = (folder / "table.md").read_text(), (folder / "page.html").read_text()
    assert "| known | replay |" in text
    for part in ("Causes and treatments", "Held-out failures, and what became of them", "Blamed by known", "Test loss"):
        assert part in page
    refused = sum("failed" in row for row in rows_of(folder, "treated").values())
    assert refused >= 3
    assert f"<summary>{refused} refused</summary>" in page
    assert page.count("DivergenceError: not this set") == 3
    assert '<th scope="col">refused</th>' not in page
    assert (folder / "figure.png").stat().st_size > 1000
    assert (folder / "causes.csv").is_file()


def test_seeds_share_a_folder_though_a_missing_group_differs_in_size(tmp_path: Path) -> None:
    sizes = set()
    for seed in (0, 1):
        data = ImageData(Digits(), train_size=80, val_size=60, test_size=60, batch_size=20, seed=seed)
        sizes.add(len(MissingGroup(3, 0.5).prepare(data, seed).data.train_set))
        missing = job(corruption=MissingGroup(3, 0.5), identify=[], also_rank=[], treat=[])
        missing.run(parts(tmp_path, dataset=data, seed=seed))
    assert len(sizes) == 2
    (folder,) = tmp_path.iterdir()
    assert {f.name for f in folder.glob("seed_*")} == {"seed_0", "seed_1"}


def test_a_name_stands_for_one_thing_in_a_folder(done: tuple[Path, float], data: ImageData) -> None:
    config = {"job": {"causes": {"blame": {"_target_": "another", "seed": 1}}, "treatments": {"replay": {"epochs": 1}}}}
    given = parts(done[0].parent, dataset=data, config=config)
    with pytest.raises(ConfigurationError, match=r"other settings.*another name than blame"):
        job(also_rank=["both"], treat=["fresh"]).run(given)  # what a combined cause is made of counts
    wrong = rf"{done[0]} has .*epochs: nothing there, 1 now.*another name than replay.*remove {done[0]}$"
    with pytest.raises(ConfigurationError, match=wrong):
        job(also_rank=[]).run(given)
    smaller = ImageData(Digits(), train_size=80, val_size=30, test_size=60, batch_size=20, label_noise=0.2)
    with pytest.raises(ConfigurationError, match="validation: 40 there, 30 now"):
        job().run(parts(done[0].parent, dataset=smaller))


def test_what_cannot_be_judged_is_left_empty(tmp_path: Path, data: ImageData) -> None:
    clean = ImageData(Digits(), train_size=80, val_size=40, test_size=60, batch_size=20)
    causes = {name: CAUSES[name] for name in ("known", "random", "blame")}
    causes |= {"all": BlamedBy(FisherLinear(), asked="validation"), "both": CombinedCauses("blame", "all")}
    study = job(corruption=MissingGroup(3, 0.9), causes=causes, identify=None, also_rank=[], treat=["replay"])
    study.run(parts(tmp_path, dataset=clean))
    (folder,) = tmp_path.iterdir()
    found, treated = rows_of(folder, "causes"), rows_of(folder, "treated")
    assert "cannot be left out" in found["known"]["failed"]
    assert "cannot be left out" in treated["known__replay"]["failed"]
    assert found["random"]["precision"] is None
    assert "net" in treated["random__replay"]["measures"]
    for name in ("all", "both"):
        assert set(treated[f"{name}__replay"]["measures"]) == {"test_loss", "test_accuracy"}
    assert "known | replay" in (folder / "table.md").read_text()


def test_names_that_there_are_not_are_refused() -> None:
    for wrong in ({"identify": ["aun"]}, {"also_rank": ["aun"]}, {"treat": ["replai"]}):
        with pytest.raises(ConfigurationError, match=r"none of them.*(aum|replay)"):
            job(**wrong)
    with pytest.raises(ConfigurationError, match="random"):
        job(causes={"aum": CAUSES["aum"]})
    with pytest.raises(ConfigurationError, match="fresh"):
        job(treatments={"fresh": CounterfactualReplay()})
    for wrong in ({"part": 1.0}, {"fresh_runs": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            job(**wrong)


def test_noise_in_images_is_where_it_is_said_to_be(data: ImageData) -> None:
    prepared = CorruptedInputs(0.1, 0.5).prepare(data, 0)
    wrong, before, after = prepared.wrong, data.train_set.images, prepared.data.train_set.images
    assert int(wrong.sum()) == 8
    assert torch.equal(after[~wrong], before[~wrong])
    assert 0.3 < float((after[wrong] != before[wrong]).double().mean()) < 0.6
    assert 0 <= float(after.min()) <= float(after.max()) <= 1
    assert torch.equal(prepared.data.train_set.labels, data.train_set.labels)
    bytes_of = ImageData(Digits(), train_size=80, val_size=20, test_size=60)
    bytes_of.train_set.images = (bytes_of.train_set.images * 255).to(torch.uint8)
    changed = CorruptedInputs(0.1, 1.0).prepare(bytes_of, 0).data.train_set.images
    assert changed.dtype == torch.uint8
    assert int(changed.max()) > 200
    for wrong_part in ({"part": 0.0}, {"strength": 1.5}):
        with pytest.raises(ConfigurationError, match="part in"):
            CorruptedInputs(**wrong_part)


def test_a_group_is_missing_from_the_training_part_alone(data: ImageData) -> None:
    prepared = MissingGroup(3, 0.5).prepare(data, 0)
    members, left = int((data.true_labels == 3).sum()), prepared.data
    assert len(left.train_set) == len(left.true_labels) == len(prepared.wrong) == 80 - round(members / 2)
    assert int((left.true_labels == 3).sum()) == members - round(members / 2)
    assert len(data.train_set) == 80
    flipped = left.train_set.labels != left.true_labels
    assert torch.equal(prepared.wrong, flipped)
    assert (len(left.val_set), len(left.test_set)) == (40, 60)
    with pytest.raises(ConfigurationError, match="label"):
        MissingGroup(11).prepare(data, 0)
    clean = ImageData(Digits(), train_size=80, val_size=20, test_size=60)
    with pytest.raises(ConfigurationError, match="noise=symmetric"):
        CorruptedLabels().prepare(clean, 0)


def test_a_judge_counts_by_predictions_of_its_own(data: ImageData) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    before = state_of(model)
    x, y = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    failures = Failures(
        choosing=tuple(range(0, 40, 2)),
        judging=tuple(range(1, 40, 2)),
        blamed=(),
        held_out=tuple(j for j in range(1, 40, 2) if int(model(x).argmax(1)[j]) != int(y[j])),
    )
    judge = RepairJudge(model, data.val_dataloader(), data.test_dataloader(), before=before, failures=failures)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    measures = judge.judge(state_of(other))
    a, b = (m(x).detach().argmax(1)[1::2] == y[1::2] for m in (model, other))
    assert (measures.fixed, measures.broken) == (int((~a & b).sum()), int((a & ~b).sum()))
    xt, yt = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    assert measures.test_loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(other(xt).detach(), yt)), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["before/run", "causes/aum", "causes/known", "treated/known__replay"])
@pytest.mark.parametrize("content", ["[]", "3", '{"measures": 3, "selection": []}'])
def test_results_of_another_form_are_named(
    done: tuple[Path, float], data: ImageData, tmp_path: Path, kind: str, content: str
) -> None:
    folder = Path(shutil.copytree(done[0], tmp_path / done[0].name))
    (folder / "seed_0" / f"{kind}.json").write_text(content)
    with pytest.raises(ConfigurationError, match="expected results as this study writes them"):
        job().run(parts(tmp_path, dataset=data))
