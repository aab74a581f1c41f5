"""The study of influence estimates, on very little data: its protocol by a plain loop, its files, its tables."""

from __future__ import annotations

import csv
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError, DivergenceError
from lightning_sgdinf.report.scatter import scatter
from lightning_sgdinf.studies.agreement import AgreementJob, job, results
from lightning_sgdinf.studies.agreement.cell import Cell, Protocol, Repeat, run_repeat
from lightning_sgdinf.studies.agreement.published import PUBLISHED
from lightning_sgdinf.studies.cache import pin_settings
from lightning_sgdinf.studies.job import Parts
from lightning_sgdinf.tasks.main import main
from lightning_sgdinf.zoo import BinaryDataset, BinaryExamples, logistic_regression, mlp

SIZE = 24
CONVEX = {"lr": 0.5, "decay": True, "epochs": 2, "batch_size": 6, "penalty": 0.01, "budgets": [0.5]}
NETWORK = {"lr": 0.3, "decay": False, "epochs": 2, "batch_size": 8, "penalty": 0.001, "damping": 1.0}
PROTOCOLS = {"blobs": {"logreg": CONVEX, "dnn": NETWORK}}


class Blobs:
    """Two clouds of points; counts how often it is read."""

    def __init__(self, width: int = 5) -> None:
        self.reads, self.width = 0, width

    def read(self) -> BinaryExamples:
        self.reads += 1
        draw = np.random.default_rng(0)
        labels = draw.integers(0, 2, 4 * SIZE)
        x = draw.standard_normal((4 * SIZE, self.width)) + 4 / self.width * labels[:, None]
        return BinaryExamples(inputs=x, labels=labels, class_names=("a", "b"))


def parts(folder: Path, model: str = "logreg", dataset: str = "blobs", source: Any = None) -> Parts:
    network = logistic_regression if model == "logreg" else partial(mlp, hidden=(4, 4), activation="tanh")
    return Parts(
        dataset=source or Blobs(),
        network=network,
        trainer=partial(
            lightning.Trainer,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
        runner=partial(InfluenceRunner, accelerator="cpu"),
        folder=folder,
        choices={"dataset": dataset, "model": model},
    )


def study(**changes: Any) -> AgreementJob:
    return AgreementJob(**{"seeds": 1, "protocols": PROTOCOLS, "size": SIZE, **changes})


def cell(model: str = "logreg", width: int = 5) -> Cell:
    return study().cell(parts(Path(), model, source=Blobs(width)))


Split = tuple[BinaryDataset, BinaryDataset]


def split(examples: BinaryExamples, seed: int) -> Split:
    """Training and validation part in all dimensions, by scikit-learn."""
    x, rest, y, rest_y = train_test_split(
        examples.inputs, examples.labels, train_size=SIZE, test_size=2 * SIZE, random_state=seed
    )
    val, _, val_y, _ = train_test_split(rest, rest_y, train_size=SIZE, test_size=SIZE, random_state=seed + 1)
    scaler = StandardScaler().fit(x)
    train, held_out = (torch.from_numpy(scaler.transform(part)).float() for part in (x, val))
    return BinaryDataset(train, torch.from_numpy(y)), BinaryDataset(held_out, torch.from_numpy(val_y))


def trained_by_hand(protocol: Protocol, data: Split, network: nn.Module, without: int | None = None) -> float:
    """Validation loss after counterfactual SGD, written out."""
    train, held_out = data
    x, y = train.inputs, train.labels.float()
    parameters, count = list(network.parameters()), 0
    for epoch in range(protocol.epochs):
        np.random.seed(epoch)
        for ids in np.array_split(np.random.permutation(SIZE), SIZE // protocol.batch_size):
            count += 1
            kept = [i for i in ids if i != without]
            loss = F.binary_cross_entropy_with_logits(network(x[kept])[:, 0], y[kept])
            loss = loss + sum(0.5 * (protocol.penalty or 0) * (p * p).sum() for p in parameters)
            grads = torch.autograd.grad(loss, parameters)
            lr = protocol.lr / np.sqrt(count) if protocol.decay else protocol.lr
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    p -= float(lr) * len(kept) / len(ids) * g
    with torch.no_grad():
        logits = network(held_out.inputs)[:, 0]
        return float(F.binary_cross_entropy_with_logits(logits, held_out.labels.float()))


@pytest.mark.parametrize(("model", "width"), [("logreg", 5), ("dnn", 5), ("dnn", 90)])
def test_truth_is_that_of_the_protocol_by_hand(model: str, width: int) -> None:
    """Also of vectors that are longer than there are examples, for which the study takes another basis."""
    one = cell(model, width)
    examples = one.source.read()
    found = run_repeat(one, examples, 3)
    data = split(examples, 3)

    def loss(without: int | None = None) -> float:
        torch.manual_seed(3)
        return trained_by_hand(one.protocol, data, one.network((width,), 1), without)

    expected = np.array([loss(j) - loss() for j in range(4)])
    assert np.abs(found.true).max() > 1e-3
    assert np.abs(found.true[:4] - expected).max() < 2e-6
    assert set(found.estimates) == {
        *("sgd_influence", "no_hessian", "last_epochs", "final_parameters", "koh_liang_paper", "koh_liang_solved"),
        *("accumulated", "accumulated_evaluated", "random"),
        *(["refine_50"] if model == "logreg" else []),
    }
    assert set(found.estimates) <= set(found.seconds)
    assert not found.failed
    gap = {k: np.abs(v - found.true).max() / np.abs(found.true).max() for k, v in found.estimates.items()}
    assert gap["accumulated_evaluated"] < gap["sgd_influence"] < 0.5


def test_published_koh_liang_by_hand() -> None:
    """For logistic regression in numpy: curvature and slopes without the penalty, its strength as damping."""
    one = cell()
    examples = one.source.read()
    found = run_repeat(one, examples, 0).estimates["koh_liang_paper"]
    train, held_out = split(examples, 0)
    torch.manual_seed(0)
    network = one.network((5,), 1)
    trained_by_hand(one.protocol, (train, held_out), network)
    theta = np.concatenate([p.detach().double().numpy().reshape(-1) for p in network.parameters()])
    x, val = (np.c_[s.inputs.double().numpy(), np.ones(SIZE)] for s in (train, held_out))
    y, val_y = train.labels.numpy(), held_out.labels.numpy()
    p, val_p = (1 / (1 + np.exp(-a @ theta)) for a in (x, val))
    query = (val_p - val_y) @ val / SIZE
    matrix = (x * (p * (1 - p))[:, None]).T @ x / SIZE + 0.01 * np.eye(6)
    v, velocity = query.copy(), np.zeros(6)
    for _ in range(100):
        velocity = 0.9 * velocity + matrix @ v - query
        v -= 0.01 * velocity
    expected = (p - y) * (x @ v) / SIZE
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_job_keeps_repeats_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    real = job.run_repeat

    def counting(cell: Cell, examples: BinaryExamples, seed: int, *, certify: bool) -> Repeat:
        done.append((seed, certify))
        return real(cell, examples, seed, certify=certify)

    monkeypatch.setattr(job, "run_repeat", counting)
    source = Blobs()
    tau = study().run(parts(tmp_path, source=source))
    assert -1 <= tau <= 1
    assert (done, source.reads) == ([(0, True)], 1)
    study(seeds=2).run(parts(tmp_path, source=source))
    assert done == [(0, True), (1, False)]
    study(seeds=2).run(parts(tmp_path, source=source))
    assert (len(done), source.reads) == (2, 2)
    with pytest.raises(ConfigurationError, match=r"size: 24 there, 20 now.; give another output_dir"):
        study(size=20).run(parts(tmp_path))
    study().run(parts(tmp_path, "dnn"))
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert {(row["dataset"], row["model"], row["repeats"]) for row in table} == {
        ("blobs", "logreg", "2"),
        ("blobs", "dnn", "1"),
    }
    assert (tmp_path / "blobs_dnn.png").read_bytes().startswith(b"\x89PNG")
    assert "Gradient check" in " ".join(results.repeats(tmp_path / "blobs_logreg")[0].notes)


def test_worker_processes_do_the_same(tmp_path: Path) -> None:
    one, folder = cell(), tmp_path / "cell"
    threads = torch.get_num_threads()
    try:
        job._begin(one, folder)
        assert job._store_in_worker(4) == 4
    finally:
        torch.set_num_threads(threads)
        job._worker.clear()
    here = run_repeat(one, one.source.read(), 4)
    assert np.array_equal(results.repeats(folder)[0].true, here.true)


def test_a_method_that_fails_is_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = InfluenceRunner.run

    def failing(self: InfluenceRunner, *arguments: Any, **more: Any) -> Any:
        if "MomentumDescent" in repr(more["estimator"]):
            raise DivergenceError("gradient descent diverged: iteration 7")
        return real(self, *arguments, **more)

    monkeypatch.setattr(InfluenceRunner, "run", failing)
    study().run(parts(tmp_path))
    found = results.repeats(tmp_path / "blobs_logreg")[0]
    assert found.failed == {"koh_liang_paper": "gradient descent diverged: iteration 7"}
    assert "koh_liang_paper" not in found.estimates
    assert "koh_liang_solved" in found.estimates


def repeat(seed: int, **estimates: list[float]) -> Repeat:
    true = np.arange(6.0)
    return Repeat(
        seed=seed,
        true=true,
        estimates={name: np.array(values) for name, values in estimates.items()},
        seconds=dict.fromkeys(estimates, 2.0),
        failed={} if "koh_liang_paper" in estimates else {"koh_liang_paper": "NaN"},
    )


def test_statistics_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "adult_lie_dnn"
    pin_settings(folder / results.SETTINGS, {"dataset": "adult_lie", "model": "dnn"})
    up, down, swapped = [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5]
    first = repeat(0, sgd_influence=up, koh_liang_paper=down, refine_25=up)
    second = repeat(1, sgd_influence=swapped, random=down, refine_25=up)
    for one in (first, second):
        results.file_of(folder, one.seed).write_text(json.dumps(results.to_json(one)))  # as earlier releases did
    lines = {line.method: line for line in results.assemble(tmp_path)}
    exact = lines["sgd_influence"]
    taus = [1.0, 13 / 15]  # one of fifteen pairs is the other way round
    assert exact.tau.mean == pytest.approx(np.mean(taus))
    assert exact.tau.deviation == pytest.approx(np.std(taus))
    assert exact.jaccard.mean == 1  # three at each end of six
    assert (lines["koh_liang_paper"].repeats, lines["koh_liang_paper"].failed) == (1, 1)
    assert (exact.seconds, exact.failed) == (2.0, 0)
    page = (tmp_path / "table.md").read_text().splitlines()
    assert page[0] == "| Kendall's tau: mean (std) | Adult DNN |"
    assert page[2:9] == [
        "| SGD-influence (exact derivative) | .93 (.07) |",
        "| *published* | *.75 (.10)* |",
        "| Koh and Liang, as published | -1.00 (.00) |",
        "| *published* | *.54 (.12)* |",
        "| refined at 25 % of the truth's cost | 1.00 (.00) |",
        "| random | -1.00 (.00) |",
        "| repeats | 2 |",
    ]
    row = next(
        r for r in csv.DictReader((tmp_path / "table.csv").read_text().splitlines()) if r["method"] == "sgd_influence"
    )
    assert (row["tau_mean"], row["published_tau_mean"], row["published_jaccard_std"]) == ("0.933333", "0.75", "0.16")


def test_published_table_is_whole() -> None:
    assert list(PUBLISHED) == [(d, m) for d in ("adult_lie", "news_lie", "mnist_lie") for m in ("logreg", "dnn")]
    for methods in PUBLISHED.values():
        assert methods["sgd_influence"].tau[0] > methods["koh_liang_paper"].tau[0]
        assert methods["sgd_influence"].jaccard[0] > methods["koh_liang_paper"].jaccard[0]


def test_scatter_shows_every_method_on_equal_axes() -> None:
    true = np.linspace(-1, 1, 9)
    figure = scatter(true, {"one": true, "two": -2 * true})
    assert [axes.get_title() for axes in figure.axes] == ["one\ntau = 1.00", "two\ntau = -1.00"]
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim()
    assert np.allclose(figure.axes[1].collections[0].get_offsets()[:, 1], -2 * true)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: study(seeds=0), "seeds >= 1"),
        (lambda: study(workers=0), "workers >= 1"),
        (lambda: Protocol(lr=0, decay=False, epochs=1, batch_size=1), "lr > 0"),
        (lambda: Protocol(lr=1, decay=False, epochs=1, batch_size=1, budgets=[2.0]), r"shares in \(0, 1\]"),
        (lambda: study().cell(parts(Path(), dataset="digits")), "no protocol .* dataset=blobs model=logreg, dataset=b"),
    ],
)
def test_impossible_settings(wrong: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        wrong()


def write_adult(folder: Path, rows: int = 40) -> None:
    """So many made-up people in each of the two files."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for name in ("adult-training.csv", "adult-test.csv"):
        lines = [
            f"{draw.integers(18, 80)}, {('Private', 'State-gov')[i % 2]}, {draw.integers(1e4, 1e5)}, HS-grad, "
            f"{draw.integers(1, 16)}, Divorced, Sales, Own-child, White, {('Male', 'Female')[i % 3 == 0]}, 0, 0, "
            f"{draw.integers(10, 60)}, Cuba, {('<=50K', '>50K')[int(draw.integers(0, 2))]}"
            for i in range(rows)
        ]
        (folder / name).write_text("\n".join(lines))


@pytest.mark.parametrize("experiment", ["agreement", "lie"])
def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], experiment: str
) -> None:
    write_adult(tmp_path / "adult")
    monkeypatch.chdir(tmp_path)
    arguments = [
        *(f"experiment={experiment}", "dataset=adult_lie", "model=dnn", "seeds=1", "workers=1", f"data_dir={tmp_path}"),
        *("job.size=24", "job.protocols.adult_lie.dnn.epochs=1", "job.protocols.adult_lie.dnn.budgets=[]"),
        *("hydra.run.dir=run", "hydra/job_logging=none", "hydra/hydra_logging=none"),
    ]
    monkeypatch.setattr("sys.argv", ["sgdinf", *arguments])
    with warnings.catch_warnings(record=True) as caught:
        main()
    renamed = [str(w.message) for w in caught if w.category is DeprecationWarning and "now" in str(w.message)]
    if experiment == "lie":
        message = "experiment=lie is now experiment=agreement; the old name goes with the next release"
        assert renamed == [message]
    else:
        assert not renamed
    folder = tmp_path / "outputs" / experiment  # where releases before left their results, too
    about = json.loads((folder / "adult_lie_dnn" / "cell.json").read_text())
    assert about["protocol"]["epochs"] == 1
    assert about["protocol"]["damping"] == 1.0
    assert len(results.repeats(folder / "adult_lie_dnn")[0].true) == 24
    printed = capsys.readouterr().out
    assert "published" in printed
    assert ".75 (.10)" in printed
    assert "table.md" in printed
