"""The experiment on 64 digits: its points against training again by hand, its pieces, its errors."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch.optim import SGD

from lightning_sgdinf import InfluenceRunner, RunLog, Scores
from lightning_sgdinf.baselines import LossBaseline, RandomBaseline
from lightning_sgdinf.cleansing import Selection, Stable, Validated
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.estimators import FinalParameters, LastEpochs, SgdInfluence
from lightning_sgdinf.studies.cleansing import CleansingJob, removals, repeat
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.studies.recorded_run import Training
from lightning_sgdinf.studies.results import RunResults
from lightning_sgdinf.studies.retraining import Scratch
from lightning_sgdinf.updates import CounterfactualReplay
from lightning_sgdinf.zoo import Digits, ImageData, logistic_regression

GRID = (2, 5)


def data(seed: int = 0) -> ImageData:
    return ImageData(Digits(), train_size=64, val_size=60, test_size=80, label_noise=0.1, batch_size=16, seed=seed)


def parts(folder: Path, seed: int = 0, config: dict[str, Any] | None = None) -> Parts:
    return Parts(
        dataset=data(seed),
        network=logistic_regression,
        trainer=partial(
            lightning.Trainer,
            max_epochs=2,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
        runner=partial(InfluenceRunner, **{"accelerator": "cpu", "certificate": "off", "progress": False}),
        folder=folder,
        choices={"dataset": "digits", "model": "logreg"},
        optimizer=partial(SGD, lr=0.5),
        seed=seed,
        config=config or {"optimizer": {"lr": 0.5}},
    )


def job(**changes: Any) -> CleansingJob:
    estimators = {
        "influence": SgdInfluence(),
        "last": LastEpochs(1),
        "loss": LossBaseline(),
        "random": RandomBaseline(),
    }
    ways = {"last": CounterfactualReplay(1), "all": CounterfactualReplay("all"), "scratch": Scratch()}
    given = {
        "estimators": estimators,
        "retrainings": ways,
        "modes": ["last"],
        "grid": GRID,
        "strategies": {"validated": Validated(GRID), "stable": Stable(GRID, resamples=100)},
        "shown": 3,
    }
    return CleansingJob(**{**given, **changes})


def folder_of(place: Path, seed: int = 0) -> Path:
    return place / "digits_logreg" / f"seed_{seed:03d}"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One repeat with two ways to train again."""
    place = tmp_path_factory.mktemp("done")
    job(modes=["last", "scratch"]).run(parts(place))
    return place


def trained_by_hand(without: set[int], first_step: int, log: RunLog) -> torch.nn.Module:
    """Plain SGD over the recorded batches, examples left out with the divisor as it was."""
    examples = data().train_set
    state = log.state(first_step)
    weight, bias = (state.params[name].clone().requires_grad_() for name in sorted(state.params, reverse=True))
    for step in log.steps(first_step, len(log)):
        ids = np.asarray(step.example_ids)
        kept = [int(i) for i in ids if int(i) not in without]
        images = torch.stack([examples[i][0] for i in kept]).flatten(1)
        logits = images @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, examples.labels[kept], reduction="sum") / len(ids)
        grads = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight -= 0.5 * grads[0]
            bias -= 0.5 * grads[1]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(bias)
    return model


def test_points_are_those_of_training_again_by_hand(done: Path) -> None:
    found = RunResults.load(folder_of(done) / "results.json")
    test = data().test_set
    images = torch.stack([test[i][0] for i in range(len(test))])
    with RunLog.open(folder_of(done) / "run_0" / "run.tlog") as log:
        half = len(log) // 2
        for method in ("influence", "loss"):
            order = Scores.load(folder_of(done) / "scores" / f"{method}.h5").order().tolist()
            for count in (0, *GRID):
                model = trained_by_hand(set(order[:count]), half, log)
                with torch.no_grad():
                    logits = model(images)
                loss = torch.nn.functional.cross_entropy(logits, test.labels)
                error = (logits.argmax(1) != test.labels).double().mean()
                name = method if count else ""
                (point,) = [p for p in found.points if (p.mode, p.method, p.count) == ("last", name, count)]
                assert point.measured.test_loss == pytest.approx(float(loss), rel=1e-4)
                assert point.measured.test_error == pytest.approx(float(error), abs=0.013)
    at = {(p.mode, p.method, p.count) for p in found.points}
    assert at == {
        (mode, method, count)
        for mode in ("last", "scratch")
        for method, counts in [("", (0,)), *((m, GRID) for m in ("influence", "last", "loss", "random"))]
        for count in counts
    }


def test_what_is_kept_beside_the_points(done: Path) -> None:
    found = RunResults.load(folder_of(done) / "results.json")
    influence, last, loss = (found.methods[name] for name in ("influence", "last", "loss"))
    state = found.training["state_bytes"]
    assert state == 4 * 650
    assert (influence.read_bytes, last.read_bytes, loss.read_bytes) == (9 * state, 5 * state, state)
    assert all(cost.seconds > 0 and 0 <= cost.auroc <= 1 for cost in found.methods.values())
    assert loss.average_precision > found.methods["random"].average_precision
    assert {c.strategy for c in found.choices} == {"validated", "stable"}
    for choice in found.choices:
        measured = {
            p.count: p.measured for p in found.points if p.mode == choice.mode and p.method in ("", choice.method)
        }
        lowest = min(m.chosen_by for m in measured.values())
        if choice.strategy == "validated":
            assert choice.count == min(count for count, m in measured.items() if m.chosen_by == lowest)
        assert (choice.before, choice.after) == (measured[0].test_error, measured[choice.count].test_error)
    with np.load(folder_of(done) / "found.npz") as kept:
        assert set(kept["ids"]) == {i for ids in found.harmful.values() for i in ids}
        assert kept["images"].shape[1:] == (8, 8, 1)
        first = int(kept["ids"][0])
        assert np.abs(kept["images"][0] / 255 - data().image(first).permute(1, 2, 0).numpy()).max() < 0.01


def test_results_on_disk_are_not_computed_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = RunResults.load(folder_of(done) / "results.json")
    monkeypatch.setattr(Training, "fit", None)
    monkeypatch.setattr(removals.Removals, "_train", None)
    monkeypatch.setattr(InfluenceRunner, "run", None)
    job(modes=["last", "scratch"]).run(parts(done))
    assert RunResults.load(folder_of(done) / "results.json") == before


def test_a_job_that_was_stopped_goes_on(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = removals.Removals._train, []

    def stopping(self: Any, mode: Any, selection: Selection) -> Any:
        calls.append((mode.name, frozenset(selection.drop)))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, mode, selection)

    monkeypatch.setattr(removals.Removals, "_train", stopping)
    small = job(methods=["influence", "random"])
    with pytest.raises(KeyboardInterrupt):
        small.run(parts(tmp_path))
    record = (folder_of(tmp_path) / "run_0" / "run.json").read_bytes()
    small.run(parts(tmp_path))
    assert (folder_of(tmp_path) / "run_0" / "run.json").read_bytes() == record
    assert len(calls) - 1 == len(set(calls)) == 5  # none, and two counts of two methods; only the stopped one twice
    whole, again = (RunResults.load(folder_of(place) / "results.json") for place in (done, tmp_path))
    kept = {(p.method, p.count): p.measured.test_loss for p in again.points}
    assert kept == {
        (p.method, p.count): p.measured.test_loss
        for p in whole.points
        if p.mode == "last" and p.method in ("", "influence", "random")
    }


def test_a_later_job_adds_to_the_table(tmp_path: Path) -> None:
    def measured() -> dict[tuple[str, str, int], float]:
        found = RunResults.load(folder_of(tmp_path) / "results.json")
        return {(p.mode, p.method, p.count): p.measured.test_loss for p in found.points}

    job(methods=["loss", "random"]).run(parts(tmp_path))
    before = measured()
    lowest = job(methods=["last"], modes=["last", "scratch"], grid=(5, 7)).run(parts(tmp_path))
    joined = RunResults.load(folder_of(tmp_path) / "results.json")
    assert {**measured(), **before} == measured()
    assert set(joined.methods) == set(joined.harmful) == {"loss", "random", "last"}
    assert {(c, n) for _, c, n in measured()} >= {("loss", 2), ("random", 5), ("last", 5), ("last", 7)}
    own = [p for p in joined.points if p.method in ("", "last") and p.count in (0, 5, 7)]
    chosen = min(p.measured.chosen_by for p in own)
    assert lowest in {p.measured.test_error for p in own if p.measured.chosen_by == chosen}
    with np.load(folder_of(tmp_path) / "found.npz") as kept:
        assert set(kept["ids"]) == {i for ids in joined.harmful.values() for i in ids}


@pytest.mark.parametrize(
    ("changes", "methods", "modes", "strategies"),
    [
        ({}, {"influence", "last", "loss", "random"}, {"last", "scratch"}, {"validated", "stable"}),
        ({"estimators": {"random": RandomBaseline(7)}}, {"influence", "last", "loss"}, {"last", "scratch"}, None),
        (
            {"retrainings": {"last": CounterfactualReplay("all")}},
            {"influence", "last", "loss", "random"},
            {"scratch"},
            None,
        ),
        ({"strategies": {"validated": Validated((3,))}}, {"influence", "last", "loss", "random"}, None, {"stable"}),
        ({"choose_by": "loss"}, set(), set(), set()),
    ],
)
def test_what_a_name_stood_for_before_leaves_the_table(
    done: Path, tmp_path: Path, changes: Any, methods: set[str], modes: set[str] | None, strategies: set[str] | None
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    job(**{"methods": ["random"], "modes": ["last"], "grid": (3,), **changes}).run(parts(tmp_path))
    now = RunResults.load(folder_of(tmp_path) / "results.json")
    earlier = [p for p in now.points if p.count in GRID]
    assert {p.method for p in earlier} == methods
    assert {p.mode for p in earlier} == (modes if modes is not None else {"last", "scratch"})
    assert {(p.method, p.mode) for p in now.points if p.count == 3} == {("random", "last")}
    if strategies is not None:
        assert {c.strategy for c in now.choices if c.method == "loss"} == strategies


def test_a_table_that_cannot_be_read_is_not_written_over(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    file = folder_of(tmp_path) / "results.json"
    file.write_text('{"format": 1, "cell": "mine"}')
    with pytest.raises(ConfigurationError, match="expected results of a run in format 1, got something else"):
        job(methods=["random"], modes=["last"]).run(parts(tmp_path))
    assert file.read_text() == '{"format": 1, "cell": "mine"}'


def test_equal_sets_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = removals.Removals._train, []
    monkeypatch.setattr(removals.Removals, "_train", lambda *a: calls.append(a[2]) or real(*a))
    twins = {"one": RandomBaseline(3), "two": RandomBaseline(3)}
    job(estimators=twins).run(parts(tmp_path))
    assert [len(selection) for selection in calls] == [0, *GRID]


def test_scores_of_several_runs_are_averaged(tmp_path: Path) -> None:
    mean = {"mean_of_two": {"of": "influence", "runs": 2}}
    job(methods=["influence"], averages=mean, grid=(2,), keep_record=False).run(parts(tmp_path))
    place = folder_of(tmp_path)
    one, two = (Scores.load(place / "scores" / f"{name}.h5") for name in ("influence", "mean_of_two"))
    assert not torch.equal(one.values, two.values)
    assert not list(place.rglob("*.tlog"))
    job(methods=["influence"], grid=(2, 3)).run(parts(tmp_path))  # the record is made again, and is the same
    states = [json.loads((place / f"run_{n}" / "run.json").read_text())["final_state"] for n in (0, 1)]
    assert len(set(states)) == 2
    other = InfluenceRunner(accelerator="cpu", certificate="off", progress=False)
    made = repeat.Repeat(parts=parts(tmp_path), data=data(), folder=place, keep="every_step", scored_on="half")
    run = made.run(1)
    with run.log():
        pass
    alone = other.run(made.new_model(), made.data.train_dataloader(), made.loader(made.scoring), log=run.path)
    assert torch.allclose(two.values, (one.values + alone.values) / 2, atol=1e-9)


def test_an_average_has_its_scores_in_common_with_its_estimator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, walked = InfluenceRunner.run, []

    def counting(self: Any, *given: Any, log: Any, **named: Any) -> Any:
        walked.append(Path(log).parent.name)
        if len(walked) == 2 and walked[-1] == "run_1":
            raise KeyboardInterrupt
        return real(self, *given, log=log, **named)

    monkeypatch.setattr(InfluenceRunner, "run", counting)
    mean = job(methods=["mean"], averages={"mean": {"of": "influence", "runs": 2}}, grid=(2,))
    with pytest.raises(KeyboardInterrupt):
        mean.run(parts(tmp_path))
    mean.run(parts(tmp_path))
    job(methods=["influence"], grid=(2,)).run(parts(tmp_path))
    assert walked == ["run_0", "run_1", "run_1"]  # the first run's once, the one that was stopped again
    found = RunResults.load(folder_of(tmp_path) / "results.json")
    assert found.methods["mean"].read_bytes == 2 * found.methods["influence"].read_bytes
    assert found.methods["mean"].seconds > found.methods["influence"].seconds


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        title = "broken"

        def rank(self, *evidence: Any) -> Any:
            raise NonFiniteError('no number; pip install "package[extra]"')

    job(methods=["random"]).run(parts(tmp_path))
    capsys.readouterr()
    job(estimators={"broken": Broken(), "loss": LossBaseline()}, grid=(5,)).run(parts(tmp_path))
    said = capsys.readouterr().out
    words = "".join(said.replace("│", " ").split())
    assert "package[extra]" in words
    assert "random" not in words  # the table is of this job
    found = RunResults.load(folder_of(tmp_path) / "results.json")
    (chosen,) = [c for c in found.choices if (c.method, c.strategy) == ("loss", "validated")]
    assert f"{100 * chosen.after:.2f}({chosen.count})" in words


def test_a_method_that_gives_nothing_is_named_and_left_out(tmp_path: Path) -> None:
    class Broken:
        title = "broken"

        def rank(self, *evidence: Any) -> Any:
            raise NonFiniteError("no number")

    job(estimators={"broken": Broken(), "random": RandomBaseline()}, grid=(2,)).run(parts(tmp_path))
    found = RunResults.load(folder_of(tmp_path) / "results.json")
    assert found.methods["broken"].failed == "NonFiniteError: no number"
    assert {p.method for p in found.points} == {"", "random"}


def test_all_of_the_validation_set_and_the_initial_state(tmp_path: Path) -> None:
    changed = job(
        methods=["final"], estimators={"final": FinalParameters(1)}, modes=["all"], scored_on="all", grid=(2,)
    )
    changed.run(parts(tmp_path))
    found = RunResults.load(folder_of(tmp_path) / "results.json")
    assert not found.choices
    assert len(found.points) == 2
    scores = Scores.load(folder_of(tmp_path) / "scores" / "final.h5")
    assert scores.provenance["query"] == "MeanLoss()" or "MeanLoss" in str(scores.provenance["query"])
    with pytest.raises(ConfigurationError, match=r"other settings \(optimizer.lr: 0.5 there, 0.1 now\)"):
        changed.run(parts(tmp_path, config={"optimizer": {"lr": 0.1}}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"methods": ["influense"]},
            r"methods: there is no 'influense'; did you mean 'influence'\? Known: influence, l",
        ),
        ({"modes": []}, "modes: expected one name or more"),
        ({"modes": ["last", "last"]}, "each once"),
        ({"grid": [5, 5]}, "grid: expected counts that increase"),
        ({"choose_by": "accuracy"}, "choose_by loss or error"),
        ({"averages": {"mean": {"of": "nothing", "runs": 2}}}, r"averages.mean: expected {of: <one of influence"),
        ({"averages": {"loss": {"of": "influence", "runs": 2}}}, r"averages.loss: there is an estimator of this name"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        job(**changes)


def test_more_removals_than_examples(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="counts below the 64 training examples, got 64"):
        job(grid=[2, 64]).run(parts(tmp_path))
