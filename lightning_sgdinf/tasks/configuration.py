"""From a composed configuration to the plain objects a job is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_sgdinf import random_state
from lightning_sgdinf.errors import ConfigurationError, SgdInfluenceError
from lightning_sgdinf.studies import Job, ModuleParts, Parts, PipelineParts, Training
from lightning_sgdinf.studies.job import main_groups
from lightning_sgdinf.studies.module_run import is_data_module, is_lightning_module
from lightning_sgdinf.studies.recorded_run import classifier_training
from lightning_sgdinf.studies.suggestion import suggestion
from lightning_sgdinf.tasks.constructors import check_module_optimizer, check_optimizer
from lightning_sgdinf.tasks.refusals import refuse_no_steps
from lightning_sgdinf.tasks.validation import TARGET, check_targets
from lightning_sgdinf.zoo import ImageData, VectorData


class Metric(Enum):
    """The held-out value to choose by."""

    loss = "loss"
    error = "error"


class Excess(Enum):
    """The treatment of removals that leave too little."""

    refuse = "refuse"
    warn = "warn"


@dataclass
class MainConfig:
    """The keys of ``config.yaml``; the groups are checked against the constructors they name."""

    seed: int
    threads: int | None
    data_dir: str
    output_dir: str
    choose_by: Metric
    on_excess: Excess
    dataset: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    recorder: dict[str, Any]
    runner: dict[str, Any]
    query: dict[str, Any]
    estimator: dict[str, Any]
    cleansing: dict[str, Any]
    retrain: dict[str, Any]
    report: dict[str, Any]
    logger: dict[str, Any] = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] | None = None
    seeds: int | None = None
    workers: int | None = None
    identify: list[str] | None = None
    treat: list[str] | None = None


def conf_dir() -> str:
    """Return the absolute path of the configuration files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return str(installed if (installed / "config.yaml").is_file() else package.parent / "conf")


def checked(config: DictConfig) -> DictConfig:
    """Return the configuration with its keys, types and targets checked; nothing is built.

    Raises:
        ConfigurationError: Names the key, what was expected and what was given.
    """
    known = MainConfig.__dataclass_fields__
    for key in config:
        if str(key) not in known:
            raise ConfigurationError(f"{key}: no such key{suggestion(str(key), known)} Known: {', '.join(known)}.")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(MainConfig), config)
        _decide_progress(typed)
        plain = OmegaConf.to_container(typed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        raise ConfigurationError(f"{getattr(error, 'full_key', None) or 'configuration'}: {first_line}") from error
    check_targets(plain)
    assert isinstance(typed, DictConfig)
    refuse_no_steps(typed.trainer)
    return typed


SHOWS_PROGRESS = {"trainer": "enable_progress_bar", "runner": "progress"}
"""Settings that say if progress is shown; ``null`` means: in a terminal."""


def _decide_progress(config: Any) -> None:
    for group, key in SHOWS_PROGRESS.items():
        if key in config[group] and config[group][key] is None:
            config[group][key] = sys.stderr.isatty()


def identity_of(config: DictConfig) -> str:
    """Return the configuration as text, without what changes no result."""
    plain = _plain(config)
    for group, key in SHOWS_PROGRESS.items():
        plain[group].pop(key, None)
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def build(node: Any, where: str, **arguments: Any) -> Any:
    """Make the object that a node names.

    Args:
        node: Has a ``_target_``.
        where: Its key, for messages.
        **arguments: More arguments for the constructor.

    Raises:
        ConfigurationError: The constructor refused its arguments; says why.
    """
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, SgdInfluenceError):
            raise type(cause)(f"{where}: {cause}") from error
        raise ConfigurationError(f"{where}: {error}") from error


def make_pipeline(config: DictConfig, choices: Mapping[str, str]) -> PipelineParts:
    """Make all parts of the main job.

    Args:
        config: As `checked` returned it.
        choices: The file that was taken of each group.

    Raises:
        ConfigurationError: A part refused its arguments.
    """
    network = build(config.model, "model")
    optimizer = build(config.optimizer, "optimizer")
    check_optimizer(optimizer)
    data = build(config.dataset, "dataset")
    if not isinstance(data, (ImageData, VectorData)):
        raise ConfigurationError(_no_network_for(data, config))

    return PipelineParts(
        training=classifier_training(
            data, network=network, optimizer=optimizer, seed=config.seed, new_trainer=_trainer_of(config)
        ),
        data=data,
        choose_by=config.choose_by.value,
        **_parts_of(config, choices),
    )


def is_module(config: DictConfig) -> bool:
    """Tell if the model of a configuration is a whole LightningModule, and not a network for one of ours."""
    return TARGET in config.model and not config.model.get("_partial_", False)


def make_module_parts(config: DictConfig, choices: Mapping[str, str]) -> ModuleParts:
    """Make all parts of the main job of a LightningModule and a data module of the caller's.

    Args:
        config: As `checked` returned it.
        choices: The file that was taken of each group.

    Raises:
        ConfigurationError: A part refused its arguments, or is none.
    """
    data = build(config.dataset, "dataset")
    if not is_data_module(data):
        raise ConfigurationError(
            f"dataset._target_: expected a LightningDataModule to train {config.model[TARGET]} on, got "
            f"{type(data).__name__}"
        )
    if config.choose_by is not Metric.loss:
        raise ConfigurationError(
            f"choose_by={config.choose_by.value}: a LightningModule of your own is judged by the query; give "
            "query=accuracy, or a query of your own, and leave choose_by as it is"
        )

    def new_model() -> Any:
        model = build(config.model, "model")
        if not is_lightning_module(model):
            raise ConfigurationError(
                f"model._target_: expected a LightningModule, got {type(model).__name__} from {config.model[TARGET]}; "
                "wrap it in one that has training_step and configure_optimizers"
            )
        return model

    with random_state.preserved():  # what is wrong with its arguments is said before anything begins
        check_module_optimizer(new_model(), config.model)
    return ModuleParts(
        training=Training(seed=config.seed, new_model=new_model, new_trainer=_trainer_of(config)),
        data=data,
        **_parts_of(config, choices),
    )


def _trainer_of(config: DictConfig) -> Callable[..., Any]:
    return lambda **arguments: build(config.trainer, "trainer", **arguments)


def _parts_of(config: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
    """Return the parts that both kinds of the main job have."""
    return {
        "folder": Path(config.output_dir),
        "new_logger": lambda: begun(build(config.logger, "logger"), config, choices) if config.logger else None,
        "recorder": build(config.recorder, "recorder"),
        "runner": build(config.runner, "runner"),
        "query": build(config.query, "query"),
        "methods": {
            choices.get("estimator", "estimator"): build(config.estimator, "estimator"),
            **{name: build(node, f"compare.{name}") for name, node in config.compare.items()},
        },
        "cleansing": build(config.cleansing, "cleansing"),
        "retraining": build(config.retrain, "retrain"),
        "on_excess": config.on_excess.value,
        "report": build(config.report, "report"),
        "choices": dict(choices),
        "config_text": OmegaConf.to_yaml(config, resolve=True),
    }


def begun(logger: Any, config: DictConfig, choices: Mapping[str, str]) -> Any:
    """Return a logger whose run has its settings from the start: the choices, and the whole configuration below
    ``config``."""
    if hasattr(logger, "log_hyperparams"):
        logger.log_hyperparams({"seed": config.seed, **main_groups(choices), "config": _plain(config)})
    return logger


def _sweep_folder() -> str | None:
    """Return the folder of the sweep that is running; ``None`` where a job runs by itself."""
    hydra = HydraConfig.get()
    return hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else None


OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)


def _no_network_for(data: Any, config: DictConfig) -> str:
    """Return what is wrong with a data set for which none of our networks can be made."""
    name, network = type(data).__name__, config.model.get(TARGET, "nothing")
    if is_data_module(data):
        return (
            f"model: {network} makes a network for a data set of lightning_sgdinf.zoo, and {name} is a data module of "
            "your own; give a LightningModule of your own beside it: model._target_=my_module.MyModel, or "
            "model=<a file of conf/model in your --config-dir>. `sgdinf init` writes an example"
        )
    return (
        f"dataset: expected a LightningDataModule, got {name} from {config.dataset.get(TARGET, 'nothing')}. If it is "
        "the binary data of the agreement study, that is experiment=agreement"
    )


def make_job(config: DictConfig, choices: Mapping[str, str]) -> tuple[Job, Parts]:
    """Make the job that the configuration names in place of the main one, and its parts.

    Args:
        config: As `checked` returned it.
        choices: The file that was taken of each group.

    Raises:
        ConfigurationError: A part refused its arguments.
    """
    return build(config.job, "job"), Parts(
        dataset=build(config.dataset, "dataset"),
        network=build(config.model, "model"),
        optimizer=build(config.optimizer, "optimizer"),
        trainer=build({**config.trainer, "_partial_": True}, "trainer"),
        runner=build({**config.runner, "_partial_": True}, "runner"),
        folder=Path(config.output_dir),
        seed=config.seed,
        choices=dict(choices),
        query=build(config.query, "query"),
        logger=build({**config.logger, "_partial_": True}, "logger") if config.logger else None,
        config=_plain(config),
    )


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
