"""Every file in conf/ composes, passes the check, and makes what it names; mistakes are named."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.studies.pipeline.stages import validation_halves
from lightning_sgdinf.tasks.configuration import build, checked, conf_dir, make_job, make_pipeline
from tests.zoo.documents import write_census, write_posts
from tests.zoo.files import human_labels, write_cifar10, write_cifar10n, write_stl10

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(
    (file.parent.name, file.stem)
    for file in CONF.glob("*/*.yaml")
    if file.parent.name not in ("hydra", "experiment", "noise", "forget", "corruption")
)
NOISES = sorted(file.stem for file in (CONF / "noise").glob("*.yaml"))
CORRUPTIONS = sorted(file.stem for file in (CONF / "corruption").glob("*.yaml"))
REQUESTS = sorted(file.stem for file in (CONF / "forget").glob("*.yaml"))
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("config", [f"output_dir={tmp_path}", *overrides])


def test_the_checkout_s_own_files_are_used() -> None:
    assert Path(conf_dir()) == CONF


def test_there_is_a_file_for_every_group() -> None:
    assert {group for group, _ in FILES} == {
        *("dataset", "model", "optimizer", "trainer", "recorder", "runner", "query", "estimator"),
        *("cleansing", "retrain", "report", "logger"),
    }


def required(group: str, name: str, folder: Path) -> list[str]:
    """Packages, arguments and files that a configuration cannot do without."""
    if (group, name) == ("logger", "wandb"):
        pytest.importorskip("wandb")
        return [
            "logger.offline=true",
            "logger.group=sweep",
            "logger.job_type=estimator",
            "logger.name=run",
            "logger.tags=[]",
        ]
    if name in ("mnist", "fashion_mnist"):
        write_tiny_mnist(folder / name.replace("_", "-"))
        return [f"data_dir={folder}", "dataset.val_size=6"]
    if name == "cifar10":
        write_cifar10(folder / "cifar10")
        return [f"data_dir={folder}", "dataset.val_size=6"]
    if name == "stl10":
        write_stl10(folder / "stl10", np.zeros((8, 3, 96, 96), np.uint8), np.arange(8) + 1)
        return [f"data_dir={folder}", "dataset.val_size=2"]
    if name == "newsgroups":
        write_posts(folder / "20news")
        return [f"data_dir={folder}", "dataset.val_size=10"]
    if name == "adult":
        write_census(folder / "adult")
        return [f"data_dir={folder}", "dataset.val_size=10", "dataset.train_size=20", "dataset.source.train_rows=60"]
    return []


def write_tiny_mnist(folder: Path, count: int = 20) -> None:
    """Four IDX files with so many blank images in each part."""
    folder.mkdir()
    for part in ("train", "t10k"):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + bytes(count * 28 * 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))
        )


@pytest.mark.parametrize(("group", "name"), FILES, ids=["/".join(file) for file in FILES])
def test_every_file_composes_and_makes_what_it_names(
    group: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = checked(composed(tmp_path, f"{group}={name}", *required(group, name, tmp_path)))
    made = build(config[group], group)
    target = config[group]["_target_"].rpartition(".")[2]
    named = made.func.__name__ if config[group].get("_partial_") else type(made).__name__
    assert named == target


@pytest.mark.parametrize("name", NOISES)
def test_every_noise_makes_the_labels_it_says(name: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10", 8)
    write_cifar10n(tmp_path / "cifar10n", human_labels(np.tile(np.arange(8), 5)))
    config = checked(
        composed(tmp_path, "dataset=cifar10", f"data_dir={tmp_path}", "dataset.val_size=5", f"noise={name}")
    )
    data = build(config.dataset, "dataset")
    assert len(data.train_set) == 35
    assert (data.flipped is None) == (name == "none")
    assert data.flipped is None or 0 < int(data.flipped.sum()) < 35


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_to_forget_is_the_one_that_the_study_carries_out(name: str, tmp_path: Path) -> None:
    job, _ = make_job(checked(composed(tmp_path, "experiment=unlearning", f"forget={name}")), {})
    target = composed(tmp_path, "experiment=unlearning", f"forget={name}").job.forget._target_
    assert type(job.forget).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_the_one_that_the_study_repairs(name: str, tmp_path: Path) -> None:
    config = checked(composed(tmp_path, "experiment=repair", f"corruption={name}", "identify=[aum]", "treat=[replay]"))
    job, _ = make_job(config, {})
    assert type(job.corruption).__name__ == config.job["corruption"]["_target_"].rpartition(".")[2]
    assert (list(job.identify), list(job.treat)) == (["aum"], ["replay"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str, tmp_path: Path) -> None:
    if name.startswith("sweep_"):
        pytest.importorskip(f"hydra_plugins.hydra_{name.removeprefix('sweep_')}_launcher")
    here = ["dataset=digits", "model=mlp"] if name == "cleansing" else []  # its own images may not be at hand
    config = checked(composed(tmp_path, f"experiment={name}", *here))
    if config.job is None:
        assert config.dataset["_target_"].endswith(("ImageData", "VectorData"))
        return
    job, parts = make_job(config, {"dataset": "adult_lie", "model": "logreg"})
    assert callable(job.run)
    assert parts.trainer(logger=False).max_epochs == config.trainer.max_epochs
    assert parts.runner(certificate="off").settings.certificate == "off"


@pytest.mark.parametrize("name", ["full", "short"])
def test_the_parts_of_a_job(name: str, tmp_path: Path) -> None:
    config = checked(composed(tmp_path, f"report={name}", "seed=3", "estimator=tracin"))
    study = make_pipeline(config, {"estimator": "tracin"})
    assert list(study.methods) == ["tracin", "loss", "random"]
    assert study.data.seed == study.methods["random"].seed == 3
    assert study.choose_by == "loss"
    assert study.training.new_model().network[1].in_features == 64
    assert study.training.new_trainer().max_epochs == 20
    scoring, choosing = validation_halves(study.data, 3)
    assert not set(scoring.indices) & set(choosing.indices)
    assert len(scoring) + len(choosing) == 400
    assert not any(tmp_path.iterdir())  # nothing is written before there is something to write


def test_one_more_ranking_to_compare_with(tmp_path: Path) -> None:
    config = checked(composed(tmp_path, "+estimator@compare.gradients=no_hessian"))
    assert list(make_pipeline(config, {}).methods) == ["estimator", "loss", "random", "gradients"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+optimizer.momentun=0.5", r"optimizer\.momentun: torch.optim.SGD has no argument.*did you mean 'momentum'"),
        ("optimizer.lr=fast", r"optimizer\.lr: expected float or Tensor, got 'fast'"),
        ("dataset.batch_size=big", r"dataset\.batch_size: expected int, got 'big'"),
        ("seed=first", r"seed: .*'first'.*Integer"),
        ("choose_by=accuracy", r"choose_by: .*accuracy.*loss, error"),
        ("+sede=1", r"sede: no such key; did you mean 'seed'\?"),
        ("trainer._target_=lightning.Trianer", r"trainer: cannot import 'lightning.Trianer'"),
        ("model.activation=selu", r"model\.activation: expected 'relu' or 'tanh' or 'gelu', got 'selu'"),
        ("+trainer.max_epoch=3", r"trainer\.max_epoch: .*did you mean 'max_epochs'"),
        ("~dataset.source", r"dataset: .*needs source"),
        ("data_dir=${nowhere}", r"data_dir: .*nowhere"),
    ],
)
def test_mistakes_are_named(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        checked(composed(tmp_path, override))


def test_mistakes_that_hydra_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException, match=r"optimizer\.momentun|momentun"):
        composed(tmp_path, "optimizer.momentun=0.5")
    with pytest.raises(MissingConfigException, match=r"(?s)dataset/mnits.*digits.*mnist"):
        composed(tmp_path, "dataset=mnits")


def test_what_a_constructor_refuses_says_where(tmp_path: Path) -> None:
    config = checked(composed(tmp_path, "dataset.label_noise=1.5"))
    with pytest.raises(ConfigurationError, match=r"dataset: fraction of labels to flip: expected a number in \[0, 1\]"):
        make_pipeline(config, {})
    config = checked(composed(tmp_path, "dataset=adult_lie"))
    with pytest.raises(ConfigurationError, match=r"dataset: expected a LightningDataModule, got Adult"):
        make_pipeline(config, {})
    config = checked(composed(tmp_path, "dataset.train_size=100000"))
    with pytest.raises(ConfigurationError, match=r"dataset: parts of"):
        make_pipeline(config, {})


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"_target_": "lightning_sgdinf.tasks.lie.LieJob", "seeds": 1, "protocols": {}}, "AgreementJob"),
        ({"_target_": "lightning_sgdinf.tasks.retraining.Counterfactual", "epochs": "all"}, "CounterfactualReplay"),
        ({"_target_": "lightning_sgdinf.tasks.study.ReportSettings", "shown": 3}, "ReportSettings"),
    ],
)
def test_targets_of_earlier_releases_are_still_made(node: dict[str, Any], named: str) -> None:
    says = f"{node['_target_']} is now lightning_sgdinf"
    with pytest.warns(DeprecationWarning, match=says):
        made = build(node, "node")
    assert type(made).__name__ == named
